// The two schedules.
#include "core/future/link_plan.h"

#include <algorithm>
#include <deque>
#include <set>
#include <utility>

#include "core/model/status.h"

namespace tierpage {
namespace {

constexpr int kPasses = 2;   // each direction has seen what the other waits for
constexpr size_t kLaps = 5;  // the middle one counts: what is pending at its border comes from the one beside it

// What both directions share: buckets counted through the laps, and what each carries.
class Direction {
 public:
  Direction(const Recurrence& uses, const std::vector<double>& times, uint64_t capacity_bytes, double rate)
      : uses_(uses), times_(times), capacity_bytes_(capacity_bytes), rate_(rate), count_(uses.bucket_count()),
        carried_(count_), prices_(count_) {}
  const std::vector<uint64_t>& carried() const { return carried_; }
  std::vector<float> take_prices() { return std::move(prices_); }

 protected:
  double budget(size_t at) const { return times_[at % count_] * rate_; }
  uint64_t room(size_t at, const std::vector<uint64_t>& loads) const {
    const uint64_t load = loads[at % count_];
    return capacity_bytes_ > load ? capacity_bytes_ - load : 0;
  }
  bool counts(size_t at) const { return at / count_ == kLaps / 2; }
  void count(size_t at, uint64_t bytes) {
    if (counts(at)) carried_[at % count_] += bytes;
  }
  // Something was waited for: one more byte in any of these buckets would be, too.
  void mark(size_t first, size_t last) {
    for (size_t at = std::max(first, kLaps / 2 * count_); at <= last && counts(at); ++at) prices_[at % count_] = 1;
  }

  const Recurrence& uses_;
  const std::vector<double>& times_;  // microseconds by bucket
  const uint64_t capacity_bytes_;
  const double rate_;
  const size_t count_;
  std::vector<uint64_t> carried_;  // by bucket of the middle lap
  std::vector<float> prices_;
};

class Writes : public Direction {
 public:
  Writes(const Recurrence& uses, const std::vector<double>& times, const std::vector<uint64_t>& loads,
         uint64_t capacity_bytes, double rate, const std::vector<PlannedWrite>& writes)
      : Direction(uses, times, capacity_bytes, rate), loads_(loads), writes_(writes), begins_(count_),
        left_(writes.size()), in_the_way_(count_), ends_(count_ * (kLaps + 3)) {
    for (uint32_t i = 0; i < writes.size(); ++i) begins_[uses.bucket(writes[i].written)].push_back(i);
  }

  void run() {
    for (size_t at = 0; at < kLaps * count_; ++at) {
      for (const Entry& entry : ends_[at]) remove(entry);  // used again or freed: it stayed so long
      while (due_next_ != pending_.end() && due_next_->first < at) overdue_ += left_[(due_next_++)->second];
      for (const uint32_t write : begins_[at % count_]) add(write, at);
      carry(at);
      make_way(at);
      if (counts(at)) in_the_way_[at % count_] = overdue_;
      if (pending_.empty()) chain_ = at + 1;
    }
  }
  const std::vector<uint64_t>& in_the_way() const { return in_the_way_; }  // bytes by bucket

 private:
  using Entry = std::pair<size_t, uint32_t>;  // (bucket of the use after which it does not stay, write)

  size_t buckets_between(uint64_t from, uint64_t to) const {
    const size_t laps = to / uses_.period() - from / uses_.period();
    return laps * count_ + uses_.bucket(to) - uses_.bucket(from);
  }
  void add(uint32_t write, size_t at) {
    const PlannedWrite& row = writes_[write];
    const Entry entry{at + buckets_between(row.written, row.slot), write};
    if (pending_.contains({entry.first - std::min(count_, entry.first), write}))
      return;  // of the lap before, never carried
    left_[write] = row.bytes;
    const auto place = pending_.insert(entry).first;
    if (due_next_ == pending_.end() || entry < *due_next_) due_next_ = place;
    const size_t end = at + buckets_between(row.written, row.slot + row.length);
    if (end < ends_.size()) ends_[end].push_back(entry);
  }
  void remove(const Entry& entry) {
    const auto found = pending_.find(entry);
    if (found == pending_.end()) return;
    if (due_next_ == found) ++due_next_;
    else if (due_next_ == pending_.end() || entry < *due_next_) overdue_ -= left_[entry.second];
    pending_.erase(found);
  }
  // Bytes of the first entry; all of them: it is done.
  void take(uint64_t bytes, size_t at) {
    const Entry entry = *pending_.begin();
    count(at, bytes);
    if (bytes == left_[entry.second]) {
      remove(entry);
      return;
    }
    if (due_next_ != pending_.begin()) overdue_ -= bytes;
    left_[entry.second] -= bytes;
  }
  void carry(size_t at) {
    for (double budget = this->budget(at); !pending_.empty() && budget >= 1;) {
      const auto part = std::min(left_[pending_.begin()->second], static_cast<uint64_t>(budget));
      budget -= static_cast<double>(part);
      take(part, at);
    }
  }
  void make_way(size_t at) {
    const uint64_t room = this->room(at, loads_);
    if (overdue_ > room) mark(chain_, at);
    while (overdue_ > room) take(left_[pending_.begin()->second], at);
  }

  const std::vector<uint64_t>& loads_;
  const std::vector<PlannedWrite>& writes_;
  std::vector<std::vector<uint32_t>> begins_;  // by bucket: what is written there
  std::vector<uint64_t> left_;                 // by write: bytes not carried yet
  std::vector<uint64_t> in_the_way_;
  std::vector<std::vector<Entry>> ends_;  // by bucket through the laps
  std::set<Entry> pending_;
  std::set<Entry>::iterator due_next_ = pending_.end();  // the first that is not in the way yet
  uint64_t overdue_ = 0;                                 // bytes before due_next_
  size_t chain_ = 0;                                     // since this bucket something is pending
};

class Fetches : public Direction {
 public:
  Fetches(const Recurrence& uses, const std::vector<double>& times, const std::vector<uint64_t>& loads,
          uint64_t capacity_bytes, double rate, std::vector<PlannedFetch>& fetches)
      : Direction(uses, times, capacity_bytes, rate), loads_(loads), fetches_(fetches), due_(count_),
        begins_(count_ * (kLaps + 1)), rows_(fetches.size()) {
    for (uint32_t i = 0; i < fetches.size(); ++i) {
      const PlannedFetch& fetch = fetches[i];
      const size_t first = uses.bucket(fetch.slot), last = uses.bucket(fetch.slot + fetch.length);
      rows_[i].gap = fetch.slot + fetch.length >= uses.period() ? last + count_ - first : last - first;
      due_[last].push_back(i);
    }
    const auto use = [&](uint32_t i) { return (fetches[i].slot + fetches[i].length) % uses.period(); };
    for (std::vector<uint32_t>& due : due_) {
      std::sort(due.begin(), due.end(), [&](uint32_t a, uint32_t b) { return use(a) > use(b); });
    }
  }

  void run() {
    chain_ = kLaps * count_;
    for (size_t at = kLaps * count_; at-- > 0;) {
      take_due(at);
      for (const Pending& entry : begins_[at]) {  // nothing arrives before its interval begins
        if (is_pending(entry)) arrive(entry, at + 1);
      }
      fit_into_memory(at);
      carry(at);
      if (front() == nullptr) chain_ = at;
    }
  }

 private:
  struct Pending {
    uint32_t fetch = 0;
    size_t due = 0;  // bucket of the use, counted through the laps
  };
  struct Row {
    size_t gap = 0;     // buckets from the use before to the use that needs it
    size_t due = 0;     // of the lap in which it is pending, 0: it is not
    uint64_t left = 0;  // bytes not carried yet
  };
  bool is_pending(const Pending& entry) const { return rows_[entry.fetch].due == entry.due; }

  // What bucket at + 1 uses is pending now.
  void take_due(size_t at) {
    const size_t due = at + 1;
    for (const uint32_t fetch : due_[due % count_]) {
      Row& row = rows_[fetch];
      if (row.due != 0) arrive({fetch, row.due}, due);  // a whole recurrence was not time enough
      row.due = due;
      row.left = fetches_[fetch].bytes;
      pending_bytes_ += fetches_[fetch].bytes;
      pending_.push_back({fetch, due});
      if (row.gap <= due) begins_[due - row.gap].push_back({fetch, due});
    }
  }
  // The one with the latest use; null if there is none.
  const Pending* front() {
    while (!pending_.empty() && !is_pending(pending_.front())) pending_.pop_front();
    return pending_.empty() ? nullptr : &pending_.front();
  }
  void fit_into_memory(size_t at) {
    const uint64_t room = this->room(at, loads_);
    if (pending_bytes_ > room) mark(at + 1, chain_);
    for (const Pending* next = front(); next != nullptr && pending_bytes_ > room; next = front()) arrive(*next, at + 1);
  }
  // What is left over of the last fetch goes on in the bucket before.
  void carry(size_t at) {
    double budget = this->budget(at);
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
    if (counts(entry.due)) fetch.arrives = fetch.length - lead(fetch, entry.due - std::min(at, entry.due));
    row.due = 0;
  }
  // How many uses before the one that needs it the bucket begins that lies so many buckets before.
  uint64_t lead(const PlannedFetch& fetch, size_t buckets) const {
    if (buckets == 0) return 0;
    const uint64_t use = (fetch.slot + fetch.length) % uses_.period();
    const uint64_t place = uses_.first_slot((uses_.bucket(use) + count_ - buckets % count_) % count_);
    const uint64_t uses = place < use ? use - place : use + uses_.period() - place;
    return std::min(uses, fetch.length - 1);
  }

  const std::vector<uint64_t>& loads_;
  std::vector<PlannedFetch>& fetches_;
  std::vector<std::vector<uint32_t>> due_;    // by bucket: fetches whose use is there, the last one first
  std::vector<std::vector<Pending>> begins_;  // by bucket through the laps: what may not arrive there or before
  std::vector<Row> rows_;                     // by fetch
  std::deque<Pending> pending_;               // the latest use first; entries of what has arrived are passed over
  uint64_t pending_bytes_ = 0;
  size_t chain_ = 0;  // down from this bucket something is pending
};

// While one link is waited for, the other goes on: its buckets are as long as what is carried in them.
std::vector<double> stretched(const Recurrence& uses, const std::vector<uint64_t>& carried, double rate) {
  std::vector<double> times(uses.bucket_count());
  for (size_t bucket = 0; bucket < times.size(); ++bucket) {
    times[bucket] =
        std::max(uses.microseconds(bucket), carried.empty() ? 0 : static_cast<double>(carried[bucket]) / rate);
  }
  return times;
}

template <class Copy>
uint64_t sum(const std::vector<Copy>& copies) {
  uint64_t bytes = 0;
  for (const Copy& copy : copies) bytes += copy.bytes;
  return bytes;
}

double seconds_over(const std::vector<double>& longer, const std::vector<double>& shorter) {
  double sum = 0;
  for (size_t i = 0; i < longer.size(); ++i) sum += std::max(longer[i] - shorter[i], 0.0);
  return sum / 1e6;
}

}  // namespace

LinkPlan plan_links(const Recurrence& uses, const std::vector<uint64_t>& loads, uint64_t capacity_bytes,
                    double bytes_per_microsecond, std::vector<PlannedFetch>& fetches,
                    const std::vector<PlannedWrite>& writes) {
  LinkPlan plan;
  const std::vector<double> kernels = stretched(uses, {}, 1);
  std::vector<double> fetch_times = kernels;
  for (int pass = 0; pass < kPasses; ++pass) {
    Writes down(uses, fetch_times, loads, capacity_bytes, bytes_per_microsecond, writes);
    down.run();
    const std::vector<double> write_times = stretched(uses, down.carried(), bytes_per_microsecond);
    std::vector<uint64_t> occupied = loads;
    for (size_t bucket = 0; bucket < occupied.size(); ++bucket) occupied[bucket] += down.in_the_way()[bucket];
    Fetches up(uses, write_times, occupied, capacity_bytes, bytes_per_microsecond, fetches);
    up.run();
    fetch_times = stretched(uses, up.carried(), bytes_per_microsecond);
    const double waited = seconds_over(write_times, kernels);
    plan.fetch_stall_seconds = seconds_over(fetch_times, kernels);
    plan.write_stall_seconds = waited;
    plan.seconds =
        seconds_over(kernels, std::vector<double>(kernels.size())) + waited + seconds_over(fetch_times, write_times);
    // The laps before and after say what crosses the border, but not all of it where a link is never idle.
    const uint64_t carried = std::max(sum(fetches), sum(writes));
    plan.seconds = std::max(plan.seconds, static_cast<double>(carried) / bytes_per_microsecond / 1e6);
    plan.fetch_prices = up.take_prices();
    plan.write_prices = down.take_prices();
  }
  return plan;
}

}  // namespace tierpage
