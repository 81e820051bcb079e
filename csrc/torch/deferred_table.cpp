// The table of deferred updates: see deferred_table.h.
#include "torch/deferred_table.h"

#include <ATen/core/Tensor.h>
#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "torch/late_stream.h"
#include "torch/operator_call.h"

namespace tierpage {

// Leaked: operators run until the very end of the process, and tensors may then no longer be freed.
DeferredTable& DeferredTable::instance() {
  static DeferredTable* const instance = new DeferredTable;
  return *instance;
}

std::shared_ptr<DeferredUpdate> DeferredTable::at_locked(uint64_t address) const {
  auto row = rows_.upper_bound(address);
  if (row == rows_.begin()) return nullptr;
  --row;
  return address < row->second.end ? row->second.update : nullptr;
}

void DeferredTable::remove_locked(const DeferredUpdate& update) {
  for (const RegionSpan& region : update.regions) rows_.erase(region.base);
  waiting_.fetch_sub(1);
}

bool DeferredTable::insert(const std::shared_ptr<DeferredUpdate>& update) {
  const DeferredCall& call = *update->call;
  const LockGuard lock(mutex_);
  if (!LateStream::instance().adopt(call.stream, call.native_stream, rows_.empty())) return false;
  for (const RegionSpan& region : update->regions) {
    if (rows_.contains(region.base)) return false;
  }
  for (const RegionSpan& region : update->regions) rows_.emplace(region.base, Row{region.end, update});
  waiting_.fetch_add(1);
  return true;
}

bool DeferredTable::take_locked(DeferredUpdate& update, const ThreadState& state) {
  if (update.runner != nullptr || (update.nested_waiters > 0 && state.depth == 0)) return false;
  update.runner = &state;
  update.runner_thread = std::this_thread::get_id();
  return true;
}

bool DeferredTable::run(const std::shared_ptr<DeferredUpdate>& update, ThreadState& state,
                        std::optional<std::chrono::steady_clock::time_point> until) {
  const DeferredCall& call = *update->call;
  bool launched = false;
  const auto end = [&](bool over) {
    {
      const LockGuard lock(mutex_);
      update->runner = nullptr;
      if (over) {
        LateStream::instance().note_run();  // first: whoever finds nothing waiting has to see that something ran
        remove_locked(*update);
      }
    }
    changed_.notify_all();
  };
  // Inside an operator this thread holds pages itself, so nobody is helped by its giving way.
  const GiveWay limit(state, state.depth == 0 ? &update->give_way : nullptr, until);
  try {
    const c10::impl::ForceDispatchKeyGuard keys(call.thread_keys);
    std::optional<c10::StreamGuard> stream;
    if (call.stream) stream.emplace(*call.stream);
    c10::Stack stack = update->arguments;  // a copy: the arguments are needed again if this fails
    run_in_frame({*call.info, call.op, call.keys, &stack, state, call.engine}, &launched);
  } catch (const GaveWay&) {
    end(false);
    return false;
  } catch (...) {
    end(launched);
    throw;
  }
  end(true);
  return true;
}

namespace {

// Two threads inside operators, of which one runs the update, may lack what the other holds.
constexpr std::chrono::seconds kNestedPatience{30};
constexpr std::chrono::seconds kRoomPatience{10};

}  // namespace

void DeferredTable::wait_for_runner(DeferredUpdate& update, const ThreadState& state) {
  const bool nested = state.depth > 0;
  const auto count = [&](int change) {
    const LockGuard lock(mutex_);
    update.nested_waiters += static_cast<uint32_t>(change);
    update.give_way.store(update.nested_waiters > 0);
  };
  struct Counted {
    const decltype(count)& note;
    const bool nested;
    Condition& changed;
    ~Counted() {
      if (!nested) return;
      note(-1);
      changed.notify_all();
    }
  } const counted{count, nested, changed_};
  if (nested) count(1);
  const auto patient_until = std::chrono::steady_clock::now() + kNestedPatience;
  wait_in_slices([&](uint32_t milliseconds) {
    UniqueLock lock(mutex_);
    const bool over = changed_.wait_for(lock, std::chrono::milliseconds(milliseconds), [&]() TP_REQUIRES(mutex_) {
      const auto row = rows_.find(update.regions.front().base);
      return row == rows_.end() || row->second.update.get() != &update ||
             (update.runner == nullptr && (nested || update.nested_waiters == 0));
    });
    if (!over && nested && std::chrono::steady_clock::now() > patient_until) {
      raise_code(TP_OUT_OF_MEMORY,
                 "tierpage is out of memory. Two operators each hold pages that the deferred update "
                 "of a parameter lacks, which both use. Raise device_budget, or set defer_updates=False.",
                 true);
    }
    return over;
  });
}

void DeferredTable::run_at(uint64_t address, ThreadState& state) {
  while (true) {
    std::shared_ptr<DeferredUpdate> update;  // ends, perhaps with the last reference to its tensors, outside the lock
    bool mine = false;
    {
      const LockGuard lock(mutex_);
      update = at_locked(address);
      if (update == nullptr || update->runner == &state) return;  // the second: its own kernel's operators
      if (update->runner != nullptr && update->runner_thread == std::this_thread::get_id()) {
        throw PagerError(TP_UNAVAILABLE,
                         "a signal handler used a tensor whose update by an optimizer this thread is about "
                         "to run, and waits for. Let the handler only set a flag.");
      }
      mine = take_locked(*update, state);
    }
    if (!mine) {
      wait_for_runner(*update, state);
    } else if (run(update, state)) {
      return;
    }
  }
}

bool DeferredTable::run_what_fits() {
  static thread_local bool running = false;
  if (std::exchange(running, true)) return false;  // one of them fails: the others are tried anyway
  struct Reset {
    ~Reset() { running = false; }
  } const reset;
  std::vector<std::shared_ptr<DeferredUpdate>> waiting;
  {
    const LockGuard lock(mutex_);
    for (const auto& [base, row] : rows_) {
      if (row.update->regions.front().base == base) waiting.push_back(row.update);  // each once
    }
  }
  OwnScope own;  // what this thread holds stays as it is
  bool any = false;
  for (std::shared_ptr<DeferredUpdate>& update : waiting) {
    {
      const LockGuard lock(mutex_);
      const auto row = rows_.find(update->regions.front().base);
      if (row == rows_.end() || row->second.update != update || !take_locked(*update, own.state())) continue;
    }
    try {
      if (!run(update, own.state(), std::chrono::steady_clock::now() + kRoomPatience)) break;
      any = true;
    } catch (const python_error&) {
      throw;
    } catch (const std::exception&) {  // it stays, and raises where one of its tensors is used
    }
    update.reset();  // its gradient with it
  }
  return any;
}

void DeferredTable::run_all(ThreadState& state) {
  while (waiting() != 0) {
    uint64_t address = 0;
    {
      const LockGuard lock(mutex_);
      const auto row = std::find_if(rows_.begin(), rows_.end(), [](const auto& entry) {
        return entry.second.update->runner == nullptr ||
               entry.second.update->runner_thread != std::this_thread::get_id();
      });
      if (row == rows_.end()) return;
      address = row->first;
    }
    run_at(address, state);
  }
}

namespace {

// Whether each tensor of the update is ours alone.
bool unseen(const DeferredUpdate& update) {
  const auto ours = [](const at::Tensor& tensor) {
    return !tensor.defined() || (tensor.use_count() == 1 && tensor.storage().use_count() == 1);
  };
  const std::vector<c10::Argument>& formals = update.call->op.schema().arguments();
  for (const ArgumentInfo& argument : update.call->info->list_arguments) {
    if (argument.kind != ArgumentKind::kList || is_step_list(formals[argument.index])) continue;
    for (const c10::IValue& element : update.arguments[argument.index].toListRef()) {
      if (element.isTensor() && !ours(element.toTensor())) return false;
    }
  }
  return true;
}

}  // namespace

bool DeferredTable::drop_unseen() {
  std::vector<std::shared_ptr<DeferredUpdate>> dropped;  // their tensors end without the lock
  {
    const LockGuard lock(mutex_);
    for (const auto& [base, row] : rows_) {
      const DeferredUpdate& update = *row.update;
      if (update.regions.front().base != base) continue;  // each once
      if (update.runner == nullptr && unseen(update)) dropped.push_back(row.update);
    }
    for (const std::shared_ptr<DeferredUpdate>& update : dropped) remove_locked(*update);
  }
  return !dropped.empty();
}

}  // namespace tierpage
