// Longest-suffix match over the trace.
#include "core/future/predictor.h"

#include <bit>

namespace tierpage {
namespace {

constexpr uint64_t kBase = 0x9e3779b97f4a7c15ull;
constexpr uint64_t kLengthOf[] = {32, 6};

constexpr uint64_t power(uint64_t base, uint64_t exponent) {
  uint64_t result = 1;
  for (uint64_t i = 0; i < exponent; ++i) result *= base;
  return result;
}
constexpr uint64_t kDrop[] = {power(kBase, kLengthOf[0]), power(kBase, kLengthOf[1])};

// Keys are small numbers; spread them before they enter the polynomial.
uint64_t spread(KeyId key) { return (uint64_t{key.value} + 1) * 0xd6e8feb86659fd93ull; }

}  // namespace

Predictor::Predictor(Trace& trace) : trace_(trace) {
  const uint64_t entries = trace.uses_max() < (1u << 16) ? trace.uses_max() * 2 : trace.uses_max();
  table_mask_ = std::bit_ceil(entries) - 1;
  for (auto& table : table_) table.resize(table_mask_ + 1);
}

void Predictor::forget() {
  consumed_ = trace_.end();
  cursor_ = kNever;
  table_mask_ = 0;
  for (auto& table : table_) std::vector<Entry>(1).swap(table);
}

uint64_t Predictor::look_up(int length_index, uint64_t hash) const {
  const Entry& entry = table_[length_index][hash >> 20 & table_mask_];
  if (entry.hash != hash || entry.position == kNever || entry.position < trace_.begin()) return kNever;
  return entry.position;
}

bool Predictor::in_place(KeyId key, uint64_t expected) const {
  return in_place_ < kInPlaceMax && trace_.opened_at(key) > expected &&
         trace_.bytes_of(trace_.at(expected)) == trace_.bytes_of(key);
}

// Moves the cursor along with the use, or loses it.
void Predictor::follow(uint64_t position) {
  if (cursor_ == kNever) return;
  const KeyId key = trace_.at(position);
  const uint64_t expected = cursor_ + 1;
  const bool known = expected < position && expected >= trace_.begin();
  const bool follows = known && trace_.at(expected) == key;
  const bool replaces = known && !follows && in_place(key, expected);
  ++(follows ? predicted_uses_ : replaces ? replaced_uses_ : mispredicted_uses_);
  in_place_ = replaces ? in_place_ + 1 : 0;
  cursor_ = follows || replaces ? expected : kNever;
  // What an operator took then it will take now: not every step has to be timed.
  if (cursor_ != kNever && trace_.microseconds(position) == 0) {
    trace_.set_microseconds(position, trace_.microseconds(expected));
  }
}

void Predictor::consume(uint64_t position) {
  const KeyId key = trace_.at(position);
  follow(position);
  for (int i = 0; i < kLengths; ++i) {
    const uint64_t length = kLengthOf[i];
    hash_[i] = hash_[i] * kBase + spread(key);
    if (position >= length) {
      // The use that leaves the window must still be in the ring; uses_max is far above 32.
      hash_[i] -= spread(trace_.at(position - length)) * kDrop[i];
    }
    if (position + 1 < length) continue;
    if (cursor_ == kNever) cursor_ = look_up(i, hash_[i]);
    table_[i][hash_[i] >> 20 & table_mask_] = {hash_[i], position};
  }
}

bool Predictor::catch_up() {
  const uint64_t end = trace_.end();
  if (consumed_ + trace_.uses_max() / 2 < end) {
    // Too far behind: the window of the rolling hash would reach past the ring. Start afresh half a ring back.
    consumed_ = end - trace_.uses_max() / 2;
    cursor_ = kNever;
    for (uint64_t& hash : hash_) hash = 0;
    for (int i = 0; i < kLengths; ++i) {
      for (uint64_t p = consumed_ - kLengthOf[i]; p < consumed_; ++p) {
        hash_[i] = hash_[i] * kBase + spread(trace_.at(p));
      }
    }
  }
  while (consumed_ < end) consume(consumed_++);
  if (cursor_ != kNever && cursor_ < trace_.begin()) cursor_ = kNever;
  return matched();
}

}  // namespace tierpage
