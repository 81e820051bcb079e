// The recorded order of region uses, and who a use belongs to.
//
// Every use (an operator was granted a region) is one entry: the *key* of the region. A key is an identity that
// survives steps: a temporary tensor of the next step gets the key that its counterpart had in this one. It is made
// when the region is allocated, from (hash of the operators just before it, its size); among live regions with the
// same hash the smallest free ordinal tells them apart, which in a repeating program comes out the same every step.
//
// The trace is a ring: the newest uses_max uses are kept. For each use it stores how far away the same key is used
// next and before, so that "when is this key used after position p" is a walk along that chain from the last answer;
// whether it wrote, when the region was freed if that came before any other use, whether it opens an operator, and how
// long that one kept the device busy.
//
// Pure, single-threaded; guarded by the owner of the Pager. Memory: 24 bytes a use plus the key table, which holds the
// keys of live regions and of uses in the ring (older ones are recycled).
//
// Invariants: every key in the ring is in use; next and previous of two uses of one key mirror each other as long as
// both are in the ring.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "core/model/types.h"

namespace tierpage {

class Trace {
 public:
  static constexpr uint64_t kNever = ~uint64_t{0};
  explicit Trace(uint64_t uses_max);
  Trace(const Trace&) = delete;  // keys know their place in by_context_
  Trace& operator=(const Trace&) = delete;
  Trace(Trace&&) = default;
  Trace& operator=(Trace&&) = default;

  // An operator begins; feeds the context of the allocations that follow.
  void note_operator(uint64_t hash) {
    context_[context_next_] = hash;
    context_next_ = (context_next_ + 1) % context_.size();
  }
  KeyId open_key(uint64_t bytes, RegionId region);
  void close_key(KeyId key);
  RegionId region_of(KeyId key) const { return keys_[key.value].region; }

  // `opens`: the first use of an operator, or an allocation outside of one.
  void append(KeyId key, bool wrote, bool opens = true) {
    const uint64_t position = end_++;
    Use& use = ring_[position & mask_];
    use = {key.value, 0, 0, 0, 0, wrote, opens};
    Key& row = keys_[key.value];
    if (row.last != kNever && position - row.last < uses_max()) {
      use.previous = static_cast<uint32_t>(position - row.last);
      ring_[row.last & mask_].next = use.previous;
    }
    row.last = position;
  }

  uint64_t uses_max() const { return mask_ + 1; }
  uint64_t begin() const { return std::max(forgotten_, end_ > uses_max() ? end_ - uses_max() : 0); }
  uint64_t end() const { return end_; }
  KeyId at(uint64_t position) const { return KeyId(ring_[position & mask_].key); }
  bool wrote(uint64_t position) const { return ring_[position & mask_].wrote; }
  bool opens(uint64_t position) const { return ring_[position & mask_].opens; }
  // How long the device worked on the operator that this use opens; 0: not known.
  double microseconds(uint64_t position) const { return static_cast<double>(ring_[position & mask_].microseconds); }
  void set_microseconds(uint64_t position, double time) {
    if (position >= begin() && position < end_) ring_[position & mask_].microseconds = static_cast<float>(time);
  }
  // How many uses later the key's region was freed, if it was not used in between; 0: it was used, or lives.
  uint64_t freed_after(uint64_t position) const { return ring_[position & mask_].freed_after; }
  uint64_t bytes_of(KeyId key) const { return keys_[key.value].bytes; }
  uint64_t opened_at(KeyId key) const { return keys_[key.value].opened_at; }  // trace position
  uint64_t last_use(KeyId key) const { return keys_[key.value].last; }        // kNever: none yet
  // First use of `key` at a position greater than `position`, or kNever.
  uint64_t next_use(KeyId key, uint64_t position);
  void forget();  // where no region is left and none will come: gives its memory back
  size_t key_count() const { return keys_.size() - unused_keys_.size(); }
  void check_invariants() const;

 private:
  struct Use {
    uint32_t key = 0;
    uint32_t next = 0;      // distance to the next use of the same key, 0: none yet
    uint32_t previous = 0;  // distance to the one before, 0: none, or it had left the ring
    uint32_t freed_after = 0;
    float microseconds = 0;
    bool wrote = false;
    bool opens = false;
  };
  struct Context {
    std::vector<std::pair<uint32_t, KeyId>>
        free;  // (ordinal, key) of those without a region; a heap, the smallest on top
    uint32_t key_count = 0;
    uint32_t next_ordinal = 0;
  };
  using Contexts = std::map<uint64_t, Context>;
  struct Key {
    RegionId region;         // the live region that has this key, none between lives
    uint64_t last = kNever;  // newest use
    uint64_t hint = kNever;  // next_use's last answer, from which it walks on
    Contexts::iterator context;
    uint64_t bytes = 0;      // of its regions, in whole granules
    uint64_t opened_at = 0;  // trace position when its newest region was allocated
    uint32_t ordinal = 0;    // among the keys of its context
    bool in_use = true;
  };
  uint64_t context_hash(uint64_t bytes) const;
  KeyId new_key();
  void recycle_keys();

  uint64_t mask_;
  uint64_t end_ = 0;
  uint64_t forgotten_ = 0;  // the uses before this position
  std::vector<Use> ring_;
  std::vector<Key> keys_;
  std::vector<KeyId> unused_keys_;
  size_t recycle_at_ = 4096;  // number of keys at which old ones are looked for
  Contexts by_context_;
  std::array<uint64_t, 8> context_{};
  size_t context_next_ = 0;
};

}  // namespace tierpage
