{
  # The addon: the plain C++20 core and its N-API edge. No -march: the binary runs on every CPU of its architecture.
  "target_defaults": {
    "cflags_cc!": ["-std=gnu++17", "-std=gnu++20", "-fno-exceptions"],
    "cflags_cc": ["-std=c++20", "-Wall", "-Wextra", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
  },
  "targets": [
    {
      "target_name": "vpci_core",
      "type": "static_library",
      "sources": ["<!@(ls core/*.cc)"],
      "cflags_cc": ["-fno-exceptions", "-fPIC"],
      "cflags!": ["-O2"],
      "cflags": ["-O3"]
    },
    {
      "target_name": "vhost_pci",
      "sources": ["<!@(ls binding/*.cc)"],
      "dependencies": ["vpci_core"],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      # SWALLOW: a thread that is being terminated takes no exceptions any more.
      "defines": [
        "NAPI_VERSION=9",
        "NODE_ADDON_API_CPP_EXCEPTIONS_ALL",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"
      ],
      "cflags!": ["-O3"],
      "cflags": ["-O2"],
      "cflags_cc!": ["-fno-exceptions"],
      "cflags_cc": ["-fexceptions"],
      # nodelete: the SIGBUS guard is installed for the process, so its code must outlive the environment.
      "ldflags": ["-Wl,-z,nodelete"]
    }
  ]
}
