// The C table of engine_api.h over Runtime: conversion only; no exception crosses.
#include <chrono>
#include <exception>

#include "engine/engine_api.h"
#include "engine/runtime.h"
#include "engine/signal_chain.h"
#include "tiers/quiet_thread.h"

namespace tierpage {
namespace {

int32_t report(tp_scope* scope, Status status) {
  if (status.code != StatusCode::kOk && status.code != StatusCode::kWait) scope->error = std::move(status.message);
  return static_cast<int32_t>(status.code);
}

// What leaves the runtime as an exception (no memory, a defect) has left its state half-way: it dies.
template <class Body>
Status guarded(Runtime* runtime, Body&& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    return runtime->die(Status::error(StatusCode::kInternal, error.what()));
  }
}

template <class Body>
int32_t guarded(tp_scope* scope, Body&& body) noexcept {
  return report(scope, guarded(scope->runtime, body));
}

// For calls that answer with a number and have no way to fail: `otherwise` then.
template <class Body>
uint64_t answered(Runtime* runtime, uint64_t otherwise, Body&& body) noexcept {
  if (runtime == nullptr) return otherwise;
  (void)guarded(runtime, [&] {
    otherwise = static_cast<uint64_t>(body());
    return Status::success();
  });
  return otherwise;
}

tp_scope* scope_create() {
  Runtime* runtime = g_runtimes.newest();
  tp_scope* scope = nullptr;
  (void)answered(runtime, 0, [&] {
    scope = static_cast<tp_scope*>(runtime->add_scope());
    return 0;
  });
  return scope;
}
void scope_destroy(tp_scope* scope) {
  (void)answered(scope->runtime, 0, [&] {
    scope->runtime->remove_scope(scope);
    return 0;
  });
}
void scope_open(tp_scope* scope, uint64_t native_stream) { Runtime::open_scope(*scope, native_stream); }
int32_t begin(tp_scope* scope, const tp_operator* op, const tp_access* accesses, size_t count) {
  return guarded(scope, [&] { return scope->runtime->begin(*scope, *op, accesses, count); });
}
int32_t wait(tp_scope* scope, uint32_t timeout_ms) {
  return guarded(scope, [&] { return scope->runtime->wait(*scope, timeout_ms); });
}
void cancel(tp_scope* scope) {
  (void)answered(scope->runtime, 0, [&] {
    scope->runtime->cancel(*scope);
    return 0;
  });
}
void seen(tp_scope* scope, const uint64_t* addresses, size_t count) { scope->runtime->seen(addresses, count); }
int32_t scope_close(tp_scope* scope, uint64_t native_stream) {
  return guarded(scope, [&] { return scope->runtime->close_scope(*scope, native_stream); });
}
const char* error_message(tp_scope* scope) { return scope->error.c_str(); }

int32_t wants(uint64_t bytes) {
  const Runtime* runtime = g_runtimes.active();
  return runtime != nullptr && runtime->wants(bytes) ? 1 : 0;
}
int32_t allocate(tp_scope* scope, uint64_t bytes, uint64_t native_stream, uint64_t place, uint64_t* address) {
  return guarded(scope, [&] { return scope->runtime->allocate(*scope, bytes, native_stream, place, address); });
}
uint64_t allocate_result(tp_scope* scope) { return scope->runtime->allocate_result(*scope); }
void deallocate(uint64_t address) {
  Runtime* runtime = g_runtimes.of_address(address);
  (void)answered(runtime, 0, [&] {
    runtime->deallocate(address);
    return 0;
  });
}
void record_stream(uint64_t address, uint64_t native_stream) {
  Runtime* runtime = g_runtimes.of_address(address);
  (void)answered(runtime, 0, [&] {
    runtime->record_stream(address, native_stream);
    return 0;
  });
}
uint64_t region_bytes(uint64_t address, uint64_t* region_base) {
  Runtime* runtime = g_runtimes.of_address(address);
  return answered(runtime, 0, [&] { return runtime->region_bytes(address, region_base); });
}
int32_t touch(tp_scope* scope, uint64_t address, uint32_t keep) {
  stay_on_top();  // somebody takes a pointer, and may use it when the pages have gone again
  return guarded(scope, [&] { return scope->runtime->touch(*scope, address, keep); });
}
int32_t scope_holds(tp_scope* scope, uint64_t address) {
  const auto holds = [&] { return scope->runtime->reports().pinned_by(scope->slot, address) ? 1 : 0; };
  return static_cast<int32_t>(answered(scope->runtime, 0, holds));
}
uint64_t list_run_bytes_max() {
  Runtime* runtime = g_runtimes.active();
  return answered(runtime, ~uint64_t{0}, [&] { return runtime->list_run_bytes_max(); });
}
int32_t may_defer(uint64_t kept_bytes) {
  Runtime* runtime = g_runtimes.active();
  return static_cast<int32_t>(answered(runtime, 0, [&] { return runtime->may_defer(kept_bytes) ? 1 : 0; }));
}
int32_t held(const uint64_t* regions, size_t count) {
  Runtime* runtime = count > 0 ? g_runtimes.of_address(regions[0]) : nullptr;
  return static_cast<int32_t>(answered(runtime, 1, [&] { return runtime->held(regions, count) ? 1 : 0; }));
}
Runtime* runtime_of(tp_runtime* handle) { return reinterpret_cast<Runtime*>(handle); }

uint64_t make_room(tp_runtime* handle, uint64_t bytes) {
  Runtime* runtime = runtime_of(handle);
  return answered(runtime, 0, [&] { return runtime->native_room().make(bytes); });
}
int32_t await_room(tp_runtime* handle, tp_scope* scope, uint64_t bytes, uint32_t timeout_ms) {
  Runtime* runtime = runtime_of(handle);
  const SlotId own = scope != nullptr && scope->runtime == runtime ? scope->slot : SlotId::none();
  const auto await = [&] {
    // A launch whose end was missed would be waited for, and only this thread can end it.
    if (own.valid()) runtime->end_launch(*scope, TP_NO_STREAM);
    return runtime->native_room().await(bytes, own, std::chrono::milliseconds(timeout_ms));
  };
  return static_cast<int32_t>(guarded(runtime, await).code);
}
void room_settled(tp_runtime* handle, uint64_t bytes, uint64_t reserved) {
  Runtime* runtime = runtime_of(handle);
  (void)answered(runtime, 0, [&] {
    runtime->native_room().settle(bytes, reserved);
    return 0;
  });
}
int32_t allow_peer(int32_t device_index) {
  Runtime* runtime = g_runtimes.newest();
  if (runtime == nullptr) return TP_OK;
  return static_cast<int32_t>(guarded(runtime, [&] { return runtime->pager_thread().allow_peer(device_index); }).code);
}
uint64_t keep_regions(const uint64_t* addresses, size_t count, int32_t ends_by_itself) {
  Runtime* runtime = count > 0 ? g_runtimes.of_address(addresses[0]) : nullptr;
  return answered(runtime, 0, [&] { return runtime->kept().keep(addresses, count, ends_by_itself != 0); });
}
void let_go(uint64_t address, uint64_t handle) {
  Runtime* runtime = g_runtimes.of_address(address);
  (void)answered(runtime, 0, [&] {
    runtime->kept().let_go(handle);
    return 0;
  });
}
void set_wait_hook(void (*hook)()) { g_wait_hook.store(hook); }
void view(uint64_t address, int32_t change) {
  Runtime* runtime = g_runtimes.of_address(address);
  (void)answered(runtime, 0, [&] {
    runtime->view(address, change);
    return 0;
  });
}
void launching(tp_scope* scope, uint64_t native_stream) {
  (void)answered(scope->runtime, 0, [&] {
    scope->runtime->launching(*scope, native_stream);
    return 0;
  });
}
void foreign_stream(uint64_t native_stream) {
  Runtime* runtime = g_runtimes.newest();
  (void)answered(runtime, 0, [&] {
    runtime->foreign_stream(native_stream);
    return 0;
  });
}
int32_t launch_begin(tp_scope* scope, const tp_access* accesses, size_t count, uint64_t native_stream) {
  return guarded(scope, [&] { return scope->runtime->begin_launch(*scope, accesses, count, native_stream); });
}
void launch_end(tp_scope* scope, uint64_t native_stream) {
  (void)answered(scope->runtime, 0, [&] {
    scope->runtime->end_launch(*scope, native_stream);
    return 0;
  });
}
void set_watch_hook(void (*hook)()) {
  Runtime* runtime = g_runtimes.newest();
  if (runtime != nullptr) runtime->pager_thread().set_watch_hook(hook);
}
void note_capture(tp_runtime* handle, int32_t change) { runtime_of(handle)->pager_thread().note_capture(change); }
int32_t own_thread() { return on_quiet_thread() ? 1 : 0; }
int32_t forked() { return g_runtimes.forked() ? 1 : 0; }

}  // namespace

void Runtime::fill_api() {
  api_ = tp_engine_api{
      .version = TIERPAGE_ENGINE_API_VERSION,
      .size = sizeof(tp_engine_api),
      .range_base = reinterpret_cast<uint64_t>(tiers_.backend->base()),
      .range_bytes = tiers_.backend->range_bytes(),
      .min_paged_bytes = options_.min_paged_bytes,
      .granule_bytes = tiers_.config.granule_bytes,
      .device_type = options_.cuda ? 1 : 0,
      .device_index = options_.device_index,
      .runtime = reinterpret_cast<tp_runtime*>(this),
      .scope_create = scope_create,
      .scope_destroy = scope_destroy,
      .scope_open = scope_open,
      .begin = tierpage::begin,
      .wait = tierpage::wait,
      .cancel = tierpage::cancel,
      .seen = tierpage::seen,
      .scope_close = scope_close,
      .error_message = error_message,
      .wants = tierpage::wants,
      .allocate = tierpage::allocate,
      .allocate_result = tierpage::allocate_result,
      .deallocate = tierpage::deallocate,
      .record_stream = tierpage::record_stream,
      .region_bytes = tierpage::region_bytes,
      .touch = tierpage::touch,
      .scope_holds = tierpage::scope_holds,
      .list_run_bytes_max = tierpage::list_run_bytes_max,
      .may_defer = tierpage::may_defer,
      .held = tierpage::held,
      .make_room = tierpage::make_room,
      .await_room = tierpage::await_room,
      .wants_times = pager_thread_.wants_times_flag(),
      .launching = tierpage::launching,
      .forked = tierpage::forked,
      .foreign_stream = tierpage::foreign_stream,
      .room_settled = tierpage::room_settled,
      .allow_peer = tierpage::allow_peer,
      .kept = {.keep = keep_regions,
               .let_go = tierpage::let_go,
               .set_wait_hook = tierpage::set_wait_hook,
               .view = tierpage::view},
      .launches = {.begin = tierpage::launch_begin,
                   .end = tierpage::launch_end,
                   .watched = core_.watch_launches_flag(),
                   .set_hook = tierpage::set_watch_hook,
                   .note_capture = tierpage::note_capture,
                   .own_thread = own_thread},
  };
}

}  // namespace tierpage
