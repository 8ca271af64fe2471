// The parts of the addon; each fills in its members of `exports` (src/sys/native.ts).
#pragma once

#include <napi.h>

namespace vpci::js {

void init_descriptors(Napi::Env env, Napi::Object exports);
void init_sockets(Napi::Env env, Napi::Object exports);
void init_watcher(Napi::Env env, Napi::Object exports);
void init_memory(Napi::Env env, Napi::Object exports);
void init_control(Napi::Env env, Napi::Object exports);
void init_peer_queues(Napi::Env env, Napi::Object exports);
void init_simple_queues(Napi::Env env, Napi::Object exports);
void init_app_queue(Napi::Env env, Napi::Object exports);
void init_worker(Napi::Env env, Napi::Object exports);
void init_relay(Napi::Env env, Napi::Object exports);
void init_log_mover(Napi::Env env, Napi::Object exports);

}  // namespace vpci::js
