// Counts lives by size, and the lesser of the most before and the most after each bucket.
#include "core/future/reuse_room.h"

#include <algorithm>
#include <map>
#include <unordered_map>

namespace tierpage {
namespace {

using Counts = std::vector<int64_t>;  // by bucket, of a ring

// By size: how many regions that are made and freed within the recurrence live in each bucket.
std::map<uint64_t, Counts> count_lives(const Recurrence& uses) {
  const size_t buckets = uses.bucket_count();
  std::unordered_map<uint32_t, bool> ended;  // by key that is ever freed: whether its last use was its last
  for (uint64_t slot = 0; slot < uses.period(); ++slot) {
    const uint32_t key = uses.key(slot).value;
    const bool freed = uses.freed_after(slot) != 0;
    if (freed || ended.contains(key)) ended[key] = freed;
  }
  std::map<uint64_t, Counts> change;
  for (uint64_t slot = 0; slot < uses.period(); ++slot) {
    const auto state = ended.find(uses.key(slot).value);
    if (state == ended.end()) continue;
    const uint64_t freed = uses.freed_after(slot);
    const uint64_t until = freed != 0 ? slot + freed : uses.next(slot);
    const bool made = state->second;  // at this use
    state->second = freed != 0;
    // Behind this use's bucket unless it begins there; in that of the next use, but not in that of what frees it.
    const size_t first = uses.bucket(slot) + (made ? 0 : 1);
    size_t last = uses.bucket(until) + (freed != 0 ? 0 : 1);
    const bool wraps = until >= uses.period();
    if (made && !wraps) last = std::max(last, first + 1);
    Counts& counts = change.try_emplace(uses.bytes(slot), buckets + 1).first->second;
    if (!wraps && first >= last) continue;
    ++counts[first];
    --counts[wraps ? buckets : last];
    if (wraps) {
      ++counts[0];
      --counts[last];
    }
  }
  for (auto& [bytes, counts] : change) {
    for (size_t bucket = 1; bucket < buckets; ++bucket) counts[bucket] += counts[bucket - 1];
    counts.pop_back();
  }
  return change;
}

// By bucket of the ring: the most in it and the `near` behind it. A queue of those that may yet be the most.
Counts most_ahead(const Counts& counts, size_t near) {
  const size_t size = counts.size();
  Counts most(size);
  std::vector<size_t> queue;
  size_t head = 0;
  for (size_t i = 2 * size; i-- > 0;) {
    while (queue.size() > head && counts[queue.back() % size] <= counts[i % size]) queue.pop_back();
    queue.push_back(i);
    while (queue[head] > i + near) ++head;
    if (i < size) most[i] = counts[queue[head] % size];
  }
  return most;
}

}  // namespace

std::vector<uint64_t> reuse_room(const Recurrence& uses, uint64_t uses_near) {
  const size_t buckets = uses.bucket_count();
  const auto near =
      static_cast<size_t>(std::min<uint64_t>(buckets - 1, (buckets * uses_near + uses.period() - 1) / uses.period()));
  std::vector<uint64_t> room(buckets);
  for (const auto& [bytes, counts] : count_lives(uses)) {
    const Counts after = most_ahead(counts, near);
    Counts before = most_ahead(Counts(counts.rbegin(), counts.rend()), near);
    std::reverse(before.begin(), before.end());
    for (size_t bucket = 0; bucket < buckets; ++bucket) {
      room[bucket] += bytes * static_cast<uint64_t>(std::min(before[bucket], after[bucket]) - counts[bucket]);
    }
  }
  return room;
}

}  // namespace tierpage
