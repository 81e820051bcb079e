// Which resident page leaves first. A policy sees pages by id and asks the owner which may be taken at all.
//
// Use: begin() once for a choice of victims, then next() for one after the other, as long as no page changes otherwise.
//
// Clock: second chance over the page rows (Corbato 1968); needs no future.
// MIN: the page whose next use is farthest (Belady 1966), by the predicted future; exact where the trace is. Its order
// is kept as things change (victim_order.h); a choice takes the best few candidates from it at a time.
//
// Invariants (check_invariants), with `pages` of the last begin():
//   Clock: the hand stands on a row of pages, or behind the last; at most two rounds are left;
//   MIN: the candidates are a few, in order, none below the bound, each a row of pages.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "core/model/page_table.h"
#include "core/model/types.h"
#include "core/pager/victim_order.h"

namespace tierpage {

class EvictionPolicy {
 public:
  using Eligible = std::function<bool(PageId)>;  // may the page leave now?
  virtual ~EvictionPolicy() = default;
  virtual const char* name() const = 0;
  virtual void begin(PageTable& pages, Eligible eligible) = 0;
  // Each eligible page once, the best victim first; none when there is no other.
  virtual PageId next() = 0;
};

class ClockPolicy final : public EvictionPolicy {
 public:
  const char* name() const override { return "clock"; }
  void begin(PageTable& pages, Eligible eligible) override;
  PageId next() override;
  void check_invariants() const;

 private:
  PageTable* pages_ = nullptr;
  Eligible eligible_;
  uint64_t steps_left_ = 0;
  uint32_t hand_ = 0;
};

class MinPolicy final : public EvictionPolicy {
 public:
  explicit MinPolicy(VictimOrder order) : order_(std::move(order)) {}
  const char* name() const override { return "min"; }
  void begin(PageTable& pages, Eligible eligible) override;
  PageId next() override;
  // In how many uses the page that next() returned last is used, and the one that it would return now (0: there is
  // none).
  uint64_t distance() const { return distance_; }
  uint64_t distance_ahead();
  // Of the best few candidates one that is not planned to stay, has just that size and is used later than in `distance`
  // uses: a victim as good as another, whose frame fits. None if there is no such.
  PageId next_leaving(uint64_t bytes, uint64_t distance);
  bool leaves_ahead();  // the page that next() would return now is not planned to stay
  void forget() { order_.forget(); }
  void check_invariants() const;

 private:
  using Candidate = VictimOrder::Candidate;
  static constexpr size_t kCandidatesMax = 64;
  bool look();  // false: there is no candidate

  VictimOrder order_;
  PageTable* pages_ = nullptr;
  Eligible eligible_;
  std::vector<Candidate> best_;  // the last one leaves first
  Candidate bound_;              // all candidates that are not smaller were in best_ at some time
  bool complete_ = true;         // best_ holds every candidate that is left
  uint64_t distance_ = 0;
};

}  // namespace tierpage
