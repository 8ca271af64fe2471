// The smallest test frame that does: named cases, checks that print and count, one main. No dependency.
#pragma once

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace check {

struct Case {
  const char* name;
  void (*run)();
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
inline int& failures() {
  static int n = 0;
  return n;
}
// Failures when the running case began.
inline int& failures_before() {
  static int n = 0;
  return n;
}
inline bool failing() { return failures() != failures_before(); }
struct Registrar {
  Registrar(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void fail(const char* file, int line, const char* what) {
  std::fprintf(stderr, "  %s:%d: %s\n", file, line, what);
  failures()++;
}
inline void fail_equal(const char* file, int line, const char* what, uint64_t a, uint64_t b) {
  std::fprintf(stderr, "  %s:%d: %s: %" PRIu64 " and %" PRIu64 "\n", file, line, what, a, b);
  failures()++;
}

// Seeded; the same numbers on every run.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
  uint64_t below(uint64_t n) { return next() % n; }
};

inline bool passes(const Case& c) {
  failures_before() = failures();
  c.run();
  return !failing();
}

// Runs the cases whose name contains argv[1], or all. With SECOND_ATTEMPT set a case that failed is run once more, and
// named when it passes then. Returns the exit status.
inline int run(int argc, char** argv) {
  const char* second = std::getenv("SECOND_ATTEMPT");
  int ran = 0, failed = 0;
  for (const Case& c : cases()) {
    if (argc > 1 && !std::strstr(c.name, argv[1])) continue;
    ran++;
    if (passes(c)) continue;
    if (second && *second && passes(c)) {
      std::printf("passed at the second attempt only: %s\n", c.name);
      continue;
    }
    failed++;
    std::fprintf(stderr, "FAILED %s\n", c.name);
  }
  std::printf("%d cases, %d failed\n", ran, failed);
  return failed || ran == 0;
}

}  // namespace check

#define CHECK_CONCAT2(a, b) a##b
#define CHECK_CONCAT(a, b) CHECK_CONCAT2(a, b)
#define TEST(name)                                                                           \
  static void CHECK_CONCAT(test_, __LINE__)();                                               \
  static check::Registrar CHECK_CONCAT(reg_, __LINE__)(name, CHECK_CONCAT(test_, __LINE__)); \
  static void CHECK_CONCAT(test_, __LINE__)()

#define CHECK(condition)                                           \
  do {                                                             \
    if (!(condition)) check::fail(__FILE__, __LINE__, #condition); \
  } while (0)
#define CHECK_EQ(a, b)                                                                             \
  do {                                                                                             \
    uint64_t check_a = static_cast<uint64_t>(a), check_b = static_cast<uint64_t>(b);               \
    if (check_a != check_b) check::fail_equal(__FILE__, __LINE__, #a " == " #b, check_a, check_b); \
  } while (0)
#define CHECK_TEXT(text, expected)                                       \
  do {                                                                   \
    const char* check_t = (text);                                        \
    if (!check_t || !std::strstr(check_t, expected))                     \
      check::fail(__FILE__, __LINE__, check_t ? check_t : "(no cause)"); \
  } while (0)
