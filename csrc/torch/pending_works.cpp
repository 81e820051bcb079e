// Which works are pending: see pending_works.h.
#include "torch/pending_works.h"

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <optional>
#include <utility>

#include "locks/mutex.h"
#include "torch/cuda_capture.h"

namespace tierpage {

std::atomic<int64_t> works_kept{0};

namespace {

using Work = c10::intrusive_ptr<c10d::Work>;

struct KeptWork {
  const tp_engine_api* engine;
  uint64_t address;  // of one of the regions
  uint64_t handle;
  c10::weak_intrusive_ptr<c10d::Work> weak;
  Work strong;  // of CUDA tensors
};

// Leaked: programs end with works pending, whose members belong to libraries that are gone by then.
struct PendingWorks {
  Mutex mutex{LockRank::kPendingWorks};
  std::vector<KeptWork> kept TP_GUARDED_BY(mutex);
  std::atomic<bool> asking{
      false};  // one thread asks at a time, without the mutex: a Work may take locks, also Python's
};
PendingWorks& pending() {
  static PendingWorks* const instance = [] {
    ask_works.store(&let_go_of_ended_works);
    return new PendingWorks;
  }();
  return *instance;
}

// Without a cast by type information, which a torch without distributed does not have.
Work work_of(const c10::IValue& value) {
  if (!value.isObject()) return {};
  auto holder = value.toObjectRef().getSlot(0).toCapsule();
  return holder.defined() ? Work::reclaim(static_cast<c10d::Work*>(holder.release())) : Work();
}

bool completed(c10d::Work& work) {
  try {
    return work.isCompleted();
  } catch (const std::exception&) {
    return true;  // it failed; who waits for it is told
  }
}

// While a graph is recorded nobody may ask the GPU.
bool has_ended(const KeptWork& kept) {
  if (kept.engine->device_type != 0 && pools_are_open()) return false;
  const Work work = kept.strong.defined() ? kept.strong : kept.weak.lock();
  return !work.defined() || completed(*work);
}

}  // namespace

void keep_until_done(ThreadState& state, const c10::IValue& value, bool is_message,
                     const std::vector<uint64_t>& addresses) {
  if (addresses.empty()) return;
  const tp_engine_api* engine = state.engine;
  const Work work = work_of(value);
  const bool on_gpu = engine->device_type != 0;
  if (work.defined() ? completed(*work) : !on_gpu) return;
  const bool ends_by_itself = work.defined() && !is_message;
  const uint64_t handle = engine->kept.keep(addresses.data(), addresses.size(), ends_by_itself ? 1 : 0);
  if (handle == 0) return;
  if (!work.defined()) {
    for (const uint64_t address : addresses) engine->record_stream(address, TP_NO_STREAM);
    state.batch.push_back({engine, addresses.front(), handle});
    return;
  }
  PendingWorks& works = pending();
  engine->kept.set_wait_hook([] { (void)let_go_of_ended_works(); });
  const LockGuard lock(works.mutex);
  works.kept.push_back(
      {engine, addresses.front(), handle, c10::weak_intrusive_ptr<c10d::Work>(work), on_gpu ? work : Work()});
  works_kept.fetch_add(1);
}

bool let_go_of_ended_works() {
  PendingWorks& works = pending();
  if (!works_pending()) return false;
  // A forked child asks nobody: the lock may be held by a thread that does not exist here.
  const tp_engine_api* attached = engine_now();
  if (attached != nullptr && attached->forked() != 0) return true;
  if (works.asking.exchange(true)) return works_pending();
  std::vector<KeptWork> kept, rest;
  {
    const LockGuard lock(works.mutex);
    kept.swap(works.kept);
  }
  for (KeptWork& one : kept) {
    if (one.engine->forked() != 0 || !has_ended(one)) {
      rest.push_back(std::move(one));
      continue;
    }
    one.engine->kept.let_go(one.address, one.handle);
    works_kept.fetch_sub(1);
    works_let_go.fetch_add(1);
  }
  {
    const LockGuard lock(works.mutex);
    for (KeptWork& one : rest) works.kept.push_back(std::move(one));
  }
  works.asking.store(false);
  return works_pending();
}

void let_go_of_all_works() {
  if (!works_pending()) return;
  std::vector<KeptWork> kept;
  {
    PendingWorks& works = pending();
    const LockGuard lock(works.mutex);
    kept.swap(works.kept);
  }
  for (const KeptWork& one : kept) {
    one.engine->kept.let_go(one.address, one.handle);
    works_kept.fetch_sub(1);
  }
}

void let_go_of_batch(ThreadState& state) {
  for (const ThreadState::InBatch& part : std::exchange(state.batch, {})) {
    part.engine->kept.let_go(part.address, part.handle);
  }
}

}  // namespace tierpage
