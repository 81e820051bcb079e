// Starting a runtime: its parts, and its place in the process.
#include "engine/runtime.h"

#include <pthread.h>

#include <mutex>

#include "tiers/fork_ranges.h"

namespace tierpage {

Runtime::Runtime(const RuntimeOptions& options)
    : options_(options), tiers_(options_), log_(options.trace_events_max),
      watchdog_(options.stall_report_seconds, options.endurance_seconds), accounts_(options.trace_events_max) {}

Status Runtime::create(const RuntimeOptions& options, Runtime** result, RuntimeParts parts) {
  // Those whose last tensor was freed after they were closed. In a forked child their threads do not exist.
  if (!g_runtimes.forked()) g_runtimes.each([](Runtime* other) { other->pager_thread().join_if_retired(); });
  std::unique_ptr<Runtime> runtime(new Runtime(options));
  runtime->tiers_.backend = std::move(parts.backend);
  runtime->tiers_.store = std::move(parts.store);
  Status status = runtime->open();
  if (status.ok()) status = runtime->publish();
  if (status.ok()) {
    *result = runtime.release();
    return status;
  }
  // Addresses that were reserved once are for who comes next, and not for nobody.
  const auto unused = runtime->tiers_.unused_backend();
  runtime.reset();
  if (unused) {
    unused->second->set_wake([](void*) {}, nullptr);
    retired_backends().put(unused->first, unused->second);
  }
  return status;
}

Status Runtime::open() {
  Status status = tiers_.open();
  if (!status.ok()) return status;
  if (tiers_.arena) {
    tiers_.arena->set_wake([](void* thread) { static_cast<PagerThread*>(thread)->arena_grew(); }, &pager_thread_);
  }
  const LockGuard lock(core_.mutex());  // nobody else knows of it yet
  if (tiers_.config.nvme_bytes_max > 0) {
    watchdog_.set_drive_bytes(tiers_.store->drive_bytes());
    if (const std::string notice = tiers_.store->notice(); !notice.empty()) watchdog_.say(notice);
    if (!tiers_.staging->notice().empty()) watchdog_.say(tiers_.staging->notice());
    tiers_.store->set_wake([](void* self) { static_cast<LockedCore*>(self)->wake(); }, &core_);
  }
  const auto range_base = reinterpret_cast<uint64_t>(tiers_.backend->base());
  core_.open(std::make_unique<Pager>(tiers_.config), range_base, tiers_.backend.get());
  core_->on_request_waits([this] {
    core_.assert_locked();
    enqueued_ns_ = steady_ns();
  });
  device_budget_.open(options_.device_bytes_max - tiers_.coder_bytes, tiers_.config.granule_bytes);
  if (!tiers_.arena) core_->host_space_ready(0, true);
  const int64_t now_ns = steady_ns();
  accounts_.opened(now_ns);
  watchdog_.something_ended(now_ns);
  if (tiers_.backend->info().synchronous_streams) streams_.all_are_synchronous();
  if (tiers_.backend->info().fences_every_stream) {
    const StreamId every = tiers_.backend->stream_id(DeviceBackend::kEveryStream);
    (void)streams_.may_owe(every, DeviceBackend::kEveryStream);
    streams_.every_stream_is(every);
    (void)tiers_.backend->stream_id(0);  // whose fence may be recorded in its place
  }
  pager_thread_.open(log_, reaches_device(options_.storage), now_ns);
  fill_api();
  return Status::success();
}

// The thread runs, and from here on addresses of the range lead to this runtime.
Status Runtime::publish() {
  static std::once_flag once;
  std::call_once(once, [] {
    hold_fork_mutex_across_forks();  // before ours: the system calls the handlers of a fork in the opposite order
    pthread_atfork([] { g_runtimes.before_fork(); }, [] { g_runtimes.after_fork_in_parent(); },
                   [] { g_runtimes.after_fork_in_child(); });
  });
  tiers_.backend->set_wake([](void* self) { static_cast<LockedCore*>(self)->wake(); }, &core_);
  return g_runtimes.add(this, api_.range_base, api_.range_bytes, &core_.mutex(), [this] {
    Status status = pager_thread_.start();
    if (status.ok()) open_.store(true);
    return status;
  });
}

}  // namespace tierpage
