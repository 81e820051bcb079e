// The table of deferred updates: see deferred_table.h.
#include "torch/deferred_table.h"

#include <ATen/core/Tensor.h>
#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <chrono>
#include <utility>

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
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!LateStream::instance().adopt(call.stream, call.native_stream, rows_.empty())) return false;
  for (const RegionSpan& region : update->regions) {
    if (rows_.contains(region.base)) return false;
  }
  for (const RegionSpan& region : update->regions) rows_.emplace(region.base, Row{region.end, update});
  waiting_.fetch_add(1);
  return true;
}

void DeferredTable::run(const std::shared_ptr<DeferredUpdate>& update, ThreadState& state) {
  const DeferredCall& call = *update->call;
  bool launched = false;
  const auto end = [&](bool over) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      update->runner = {};
      if (over) {
        LateStream::instance().note_run();  // first: whoever finds nothing waiting has to see that something ran
        remove_locked(*update);
      }
    }
    changed_.notify_all();
  };
  try {
    const c10::impl::ForceDispatchKeyGuard keys(call.thread_keys);
    std::optional<c10::StreamGuard> stream;
    if (call.stream) stream.emplace(*call.stream);
    c10::Stack stack = update->arguments;  // a copy: the arguments are needed again if this fails
    run_in_frame({*call.info, call.op, call.keys, &stack, state, call.engine}, &launched);
  } catch (...) {
    end(launched);
    throw;
  }
  end(true);
}

void DeferredTable::wait_for_runner(const DeferredUpdate& update) {
  wait_in_slices([&](uint32_t milliseconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::milliseconds(milliseconds), [&] {
      const auto row = rows_.find(update.regions.front().base);
      return row == rows_.end() || row->second.update.get() != &update || update.runner == std::thread::id();
    });
  });
}

void DeferredTable::run_at(uint64_t address, ThreadState& state) {
  const std::thread::id self = std::this_thread::get_id();
  while (true) {
    std::shared_ptr<DeferredUpdate> update;  // ends, perhaps with the last reference to its tensors, outside the lock
    bool mine = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      update = at_locked(address);
      if (update == nullptr || update->runner == self) return;  // the second: its own kernel's operators
      mine = update->runner == std::thread::id();
      if (mine) update->runner = self;
    }
    if (mine) {
      run(update, state);
      return;
    }
    wait_for_runner(*update);
  }
}

void DeferredTable::run_all(ThreadState& state) {
  while (waiting() != 0) {
    uint64_t address = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto row = std::find_if(rows_.begin(), rows_.end(), [](const auto& entry) {
        return entry.second.update->runner != std::this_thread::get_id();
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
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [base, row] : rows_) {
      const DeferredUpdate& update = *row.update;
      if (update.regions.front().base != base) continue;  // each once
      if (update.runner == std::thread::id() && unseen(update)) dropped.push_back(row.update);
    }
    for (const std::shared_ptr<DeferredUpdate>& update : dropped) remove_locked(*update);
  }
  return !dropped.empty();
}

}  // namespace tierpage
