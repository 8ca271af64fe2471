#include "addon.h"

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  using namespace vpci::js;
  init_descriptors(env, exports);
  init_sockets(env, exports);
  init_watcher(env, exports);
  init_memory(env, exports);
  init_control(env, exports);
  init_peer_queues(env, exports);
  init_simple_queues(env, exports);
  init_app_queue(env, exports);
  init_worker(env, exports);
  init_relay(env, exports);
  init_log_mover(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(vhost_pci, init)
