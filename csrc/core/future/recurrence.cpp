// Reads the recurrence off the trace.
#include "core/future/recurrence.h"

#include <unordered_map>

namespace tierpage {

Recurrence::Recurrence(const Trace& trace, uint64_t begin, uint64_t end)
    : trace_(trace), begin_(begin), period_(end - begin), next_(period_), ops_(period_) {
  std::unordered_map<uint32_t, uint64_t> first;
  uint32_t lowest = ~0u;
  uint32_t op = 0;
  for (uint64_t slot = 0; slot < period_; ++slot) {
    const KeyId key = trace_.at(begin_ + slot);
    op += slot > 0 && trace_.opens(begin_ + slot);
    ops_[slot] = op;
    first.try_emplace(key.value, slot);
    if (key.value < lowest) {
      lowest = key.value;
      anchor_ = slot;
    }
  }
  for (uint64_t slot = period_; slot-- > 0;) {
    uint64_t& known = first[trace_.at(begin_ + slot).value];
    // Walking backwards, `known` is the next use; at the last one it is the first of the next recurrence.
    next_[slot] = known > slot ? known : known + period_;
    known = slot;
  }
  cut_into_buckets();
}

uint64_t Recurrence::freed_after(uint64_t slot) const {
  const uint64_t position = begin_ + slot % period_;
  if (const uint64_t distance = trace_.freed_after(position); distance != 0) return distance;
  if (position < trace_.begin() + period_) return 0;
  return trace_.at(position - period_) == trace_.at(position) ? trace_.freed_after(position - period_) : 0;
}

void Recurrence::cut_into_buckets() {
  buckets_ = static_cast<size_t>(std::min(op_count(), kBucketsMax));
  first_slots_.assign(buckets_, period_);
  microseconds_.assign(buckets_, 0);
  uint64_t timed = 0;
  for (uint64_t slot = period_; slot-- > 0;) {
    const bool opens = slot == 0 || ops_[slot] != ops_[slot - 1];
    first_slots_[bucket(slot)] = slot;
    if (!opens) continue;
    const double time = trace_.microseconds(begin_ + slot);
    microseconds_[bucket(slot)] += time;
    timed += time > 0;
  }
  timed_share_ = static_cast<double>(timed) / static_cast<double>(op_count());
}

}  // namespace tierpage
