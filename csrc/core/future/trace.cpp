// Keys and the ring of uses.
#include "core/future/trace.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "core/model/status.h"

namespace tierpage {
namespace {

uint64_t mix(uint64_t value) {  // finaliser of SplitMix64 (Steele, Lea, Flood 2014)
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
  return value ^ (value >> 31);
}

}  // namespace

Trace::Trace(uint64_t uses_max) : mask_(std::bit_ceil(uses_max) - 1), ring_(mask_ + 1) {}

uint64_t Trace::context_hash(uint64_t bytes) const {
  uint64_t hash = mix(bytes + 0x9e3779b97f4a7c15ull);
  for (size_t i = 0; i < context_.size(); ++i) {
    hash = mix(hash ^ context_[(context_next_ + i) % context_.size()]) + i;
  }
  return hash;
}

KeyId Trace::open_key(uint64_t bytes, RegionId region) {
  if (key_count() >= recycle_at_) recycle_keys();
  const Contexts::iterator context = by_context_.try_emplace(context_hash(bytes)).first;
  Context& row = context->second;
  KeyId key;
  if (!row.free.empty()) {
    key = row.free.front().second;
    std::pop_heap(row.free.begin(), row.free.end(), std::greater<>());
    row.free.pop_back();
  } else {
    key = new_key();
    keys_[key.value].context = context;
    keys_[key.value].bytes = bytes;
    keys_[key.value].ordinal = row.next_ordinal++;
    ++row.key_count;
  }
  keys_[key.value].region = region;
  keys_[key.value].opened_at = end_;
  return key;
}

KeyId Trace::new_key() {
  if (unused_keys_.empty()) {
    keys_.emplace_back();
    return KeyId(static_cast<uint32_t>(keys_.size() - 1));
  }
  const KeyId key = unused_keys_.back();
  unused_keys_.pop_back();
  keys_[key.value] = Key{};
  return key;
}

// Allocations in contexts that never come back (new shapes, new programs) would fill the key table for ever. A key
// without a region and without a use in the ring can mean nothing any more. The threshold doubles with what remains,
// so that the cost per new key stays constant.
void Trace::recycle_keys() {
  for (uint32_t i = 0; i < keys_.size(); ++i) {
    Key& row = keys_[i];
    if (!row.in_use || row.region.valid() || (row.last != kNever && row.last >= begin())) continue;
    if (--row.context->second.key_count == 0) by_context_.erase(row.context);
    row.in_use = false;
    unused_keys_.push_back(KeyId(i));
  }
  for (auto& [hash, context] : by_context_) {
    std::erase_if(context.free, [this](const auto& entry) { return !keys_[entry.second.value].in_use; });
    std::make_heap(context.free.begin(), context.free.end(), std::greater<>());
  }
  recycle_at_ = std::max<size_t>(4096, 2 * key_count());
}

void Trace::close_key(KeyId key) {
  Key& row = keys_[key.value];
  row.region = RegionId::none();
  auto& free = row.context->second.free;
  free.emplace_back(row.ordinal, key);
  std::push_heap(free.begin(), free.end(), std::greater<>());
  if (row.last == kNever || row.last < begin()) return;
  // An allocation that failed has no use of its own: the last one is of the life before, and has its end already.
  uint32_t& freed_after = ring_[row.last & mask_].freed_after;
  if (freed_after == 0) freed_after = static_cast<uint32_t>(end_ - row.last);
}

uint64_t Trace::next_use(KeyId key, uint64_t position) {
  Key& row = keys_[key.value];
  const uint64_t oldest = begin();
  if (row.last == kNever || row.last < oldest || row.last <= position) return kNever;
  uint64_t at = row.hint != kNever && row.hint >= oldest ? row.hint : row.last;
  while (at <= position) at += ring_[at & mask_].next;  // ends: the newest use is past `position`
  // The cursor may have jumped back: the first use after `position` may stand before the hint.
  for (uint64_t back = ring_[at & mask_].previous; back != 0; back = ring_[at & mask_].previous) {
    if (at - back <= position || at - back < oldest) break;
    at -= back;
  }
  row.hint = at;
  return at;
}

void Trace::forget() {
  mask_ = 0;
  forgotten_ = end_;
  std::vector<Use>(1).swap(ring_);
  std::vector<Key>().swap(keys_);
  std::vector<KeyId>().swap(unused_keys_);
  by_context_.clear();
}

void Trace::check_invariants() const {
  for (uint64_t position = begin(); position < end_; ++position) {
    const Use& use = ring_[position & mask_];
    TP_ASSERT(keys_[use.key].in_use);
    if (use.next == 0) {
      TP_ASSERT(keys_[use.key].last == position);
    } else {
      const Use& next = ring_[(position + use.next) & mask_];
      TP_ASSERT(position + use.next < end_ && next.key == use.key && next.previous == use.next);
    }
  }
}

}  // namespace tierpage
