// The backward schedule.
#include "core/arrival_plan.h"

#include <algorithm>
#include <deque>

namespace tierpage {
namespace {

constexpr size_t kLaps = 3;  // the middle one counts: what is pending at its end comes from the one behind it

class Schedule {
 public:
  Schedule(const Recurrence& uses, const std::vector<uint64_t>& loads, uint64_t capacity_bytes, double rate,
           std::vector<PlannedFetch>& fetches)
      : uses_(uses), loads_(loads), capacity_bytes_(capacity_bytes), rate_(rate), fetches_(fetches),
        count_(uses.bucket_count()), due_(count_), begins_(count_ * (kLaps + 1)), carried_(count_), rows_(fetches.size()) {
    for (uint32_t i = 0; i < fetches.size(); ++i) {
      const PlannedFetch& fetch = fetches[i];
      const size_t first = uses.bucket(fetch.slot), last = uses.bucket(fetch.slot + fetch.length);
      rows_[i].gap = fetch.slot + fetch.length >= uses.period() ? last + count_ - first : last - first;
      due_[last].push_back(i);
    }
    for (std::vector<uint32_t>& due : due_) {
      std::sort(due.begin(), due.end(), [&](uint32_t a, uint32_t b) {
        return (fetches[a].slot + fetches[a].length) % uses.period() > (fetches[b].slot + fetches[b].length) % uses.period();
      });
    }
  }

  void run() {
    for (size_t at = kLaps * count_; at-- > 0;) {
      take_due(at);
      release_begun(at);
      fit_into_memory(at);
      carry(at);
    }
  }

  ArrivalPlan result() const {
    ArrivalPlan plan;
    for (size_t bucket = 0; bucket < count_; ++bucket) {
      const double link = static_cast<double>(carried_[bucket]) / rate_;
      plan.seconds += std::max(uses_.microseconds(bucket), link) / 1e6;
      plan.stalled_seconds += std::max(link - uses_.microseconds(bucket), 0.0) / 1e6;
    }
    return plan;
  }

 private:
  struct Pending {
    uint32_t fetch = 0;
    size_t due = 0;  // bucket of the use, counted through the laps
  };
  struct Row {
    size_t gap = 0;      // buckets from the use before to the use that needs it
    size_t due = 0;      // of the lap in which it is pending, 0: it is not
    uint64_t left = 0;   // bytes not carried yet
  };
  bool is_pending(const Pending& entry) const { return rows_[entry.fetch].due == entry.due; }

  // What bucket at + 1 uses is pending now.
  void take_due(size_t at) {
    const size_t due = at + 1;
    for (const uint32_t fetch : due_[due % count_]) {
      Row& row = rows_[fetch];
      row.due = due;
      row.left = fetches_[fetch].bytes;
      pending_bytes_ += fetches_[fetch].bytes;
      pending_.push_back({fetch, due});
      if (row.gap <= due) begins_[due - row.gap].push_back({fetch, due});
    }
  }

  // Nothing arrives before its interval begins: such a fetch is carried right behind, whatever the link says.
  void release_begun(size_t at) {
    for (const Pending& entry : begins_[at]) {
      if (is_pending(entry)) arrive(entry, at + 1);
    }
  }

  // The one with the latest use; null if there is none.
  const Pending* front() {
    while (!pending_.empty() && !is_pending(pending_.front())) pending_.pop_front();
    return pending_.empty() ? nullptr : &pending_.front();
  }

  void fit_into_memory(size_t at) {
    const uint64_t load = loads_[at % count_];
    const uint64_t room = capacity_bytes_ > load ? capacity_bytes_ - load : 0;
    for (const Pending* next = front(); next != nullptr && pending_bytes_ > room; next = front()) arrive(*next, at + 1);
  }

  // The link's time in this bucket; what is left over of the last fetch goes on in the bucket before.
  void carry(size_t at) {
    double budget = uses_.microseconds(at % count_) * rate_;
    for (const Pending* next = front(); next != nullptr && budget >= 1; next = front()) {
      Row& row = rows_[next->fetch];
      const auto part = std::min(row.left, static_cast<uint64_t>(budget));
      budget -= static_cast<double>(part);
      row.left -= part;
      count(at, part);
      if (row.left > 0) return;
      arrive(*next, at);
    }
  }

  void arrive(const Pending& entry, size_t at) {
    Row& row = rows_[entry.fetch];
    PlannedFetch& fetch = fetches_[entry.fetch];
    count(at, row.left);
    pending_bytes_ -= fetch.bytes;
    if (entry.due >= count_ && entry.due < 2 * count_) fetch.arrives = fetch.length - lead(fetch, entry.due - at);
    row.due = 0;
  }

  // How many uses before the one that needs it the stretch begins that lies so many buckets before.
  uint64_t lead(const PlannedFetch& fetch, size_t buckets) const {
    if (buckets == 0) return 0;
    const uint64_t use = (fetch.slot + fetch.length) % uses_.period();
    const uint64_t place = uses_.first_slot((uses_.bucket(use) + count_ - buckets % count_) % count_);
    const uint64_t uses = place < use ? use - place : use + uses_.period() - place;
    return std::min(uses, fetch.length - 1);
  }

  void count(size_t at, uint64_t bytes) {
    if (at >= count_ && at < 2 * count_) carried_[at - count_] += bytes;
  }

  const Recurrence& uses_;
  const std::vector<uint64_t>& loads_;
  const uint64_t capacity_bytes_;
  const double rate_;
  std::vector<PlannedFetch>& fetches_;
  const size_t count_;
  std::vector<std::vector<uint32_t>> due_;     // by bucket: fetches whose use is there, the last one first
  std::vector<std::vector<Pending>> begins_;   // by bucket through the laps: what may not arrive there or before
  std::vector<uint64_t> carried_;              // by bucket of the middle lap
  std::vector<Row> rows_;                      // by fetch
  std::deque<Pending> pending_;                // the latest use first; entries of what has arrived are passed over
  uint64_t pending_bytes_ = 0;
};

}  // namespace

ArrivalPlan plan_arrivals(const Recurrence& uses, const std::vector<uint64_t>& loads, uint64_t capacity_bytes,
                          double bytes_per_microsecond, std::vector<PlannedFetch>& fetches) {
  Schedule schedule(uses, loads, capacity_bytes, bytes_per_microsecond, fetches);
  schedule.run();
  return schedule.result();
}

}  // namespace tierpage
