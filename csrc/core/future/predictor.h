// Where in the past "now" is, and what that says about the future.
//
// Method: longest-suffix match with two lengths. For every position of the trace the hashes of the last 32 and of the
// last 6 keys are remembered (polynomial rolling hash, newest position wins). The *cursor* is the earlier position
// that matches now: while the past goes on as the present does, it just moves along; at a mismatch the tables give a
// new one. What followed the cursor then is predicted to follow now. No step marks: a period is found by itself, and
// training, evaluation and generation may interleave.
//
// A temporary may come *in place* of another: its counterpart of the time before is of the same size, but had another
// key. So do caches that grow by concatenation: the new one is made while the old one lives, and each layer gets the
// key that the layer before has just let go. A few of these in a row do not lose the cursor. Only what was allocated
// since the place that is compared with does so: what lived then was used there under its own key, or was not.
//
// catch_up() does the work, in batches; the hit path only appends to the trace.
#pragma once

#include <cstdint>
#include <vector>

#include "core/future/trace.h"
#include "core/model/types.h"

namespace tierpage {

class Predictor {
 public:
  static constexpr uint64_t kNever = Trace::kNever;
  explicit Predictor(Trace& trace);

  // Reads the uses appended since the last call. Returns false if there is no match.
  bool catch_up();
  bool matched() const { return cursor_ != kNever; }
  uint64_t cursor() const { return cursor_; }  // kNever: no match
  // Uses predicted after now; beyond them nothing is known.
  uint64_t horizon() const { return matched() ? trace_.end() - 1 - cursor_ : 0; }
  // Key of the i-th use after now (i from 1 to horizon()).
  KeyId future(uint64_t i) const { return trace_.at(cursor_ + i); }
  // How many uses after that its region is freed without being used again; 0: it is used again.
  uint64_t freed_after(uint64_t i) const { return trace_.freed_after(cursor_ + i); }
  // Where the key is used next after the cursor, kNever if not within the horizon.
  uint64_t next_use(KeyId key) { return matched() ? trace_.next_use(key, cursor_) : kNever; }
  // In how many uses from now that is.
  uint64_t uses_until(KeyId key) {
    const uint64_t next = next_use(key);
    return next == kNever ? kNever : next - cursor_;
  }

  void forget();  // with the trace

  uint64_t predicted_uses() const { return predicted_uses_; }
  uint64_t mispredicted_uses() const { return mispredicted_uses_; }
  uint64_t replaced_uses() const { return replaced_uses_; }  // in place of what was predicted

 private:
  static constexpr int kLengths = 2;
  static constexpr int kInPlaceMax = 8;  // in a row; a layer of a decoder has six
  struct Entry {
    uint64_t hash = 0;
    uint64_t position = kNever;
  };
  void consume(uint64_t position);
  void follow(uint64_t position);
  bool in_place(KeyId key, uint64_t expected) const;
  uint64_t look_up(int length_index, uint64_t hash) const;

  Trace& trace_;
  uint64_t consumed_ = 0;     // uses read so far
  uint64_t cursor_ = kNever;  // matches position consumed_ - 1
  uint64_t hash_[kLengths] = {0, 0};
  uint64_t predicted_uses_ = 0;
  uint64_t mispredicted_uses_ = 0;
  uint64_t replaced_uses_ = 0;
  int in_place_ = 0;  // uses in a row that came in place of what was predicted
  uint64_t table_mask_;
  std::vector<Entry> table_[kLengths];
};

}  // namespace tierpage
