// The greedy choice of intervals.
#include "core/future/residency_plan.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

#include "core/future/link_plan.h"
#include "core/future/recurrence.h"
#include "core/future/reuse_room.h"
#include "core/model/status.h"

namespace tierpage {
namespace {

constexpr double kTimedShareMin = 0.9;  // of operators, or the times say nothing
constexpr uint64_t kNarrowShare = 8;    // of the capacity: what is kept for the largest operators' sake
constexpr uint64_t kUsesNear = 512;     // within which freed regions are reused
constexpr int kSettling = 2;            // rounds until it is known which versions are written down anyway
constexpr int kTimedRounds = 10;
constexpr int kRounds = 6;  // these and those of the bisection

// Sums over buckets of a ring: add to a range, ask for the largest in a range. Both O(log n).
class RangeLoad {
 public:
  explicit RangeLoad(size_t count) : size_(std::bit_ceil(count)), largest_(2 * size_), added_(2 * size_) {}
  void add(size_t first, size_t last, uint64_t bytes) { visit(1, 0, size_, first, last, bytes); }
  uint64_t largest(size_t first, size_t last) const { return find(1, 0, size_, first, last); }

 private:
  // Nodes cover [low, high); ranges are [first, last).
  void visit(size_t node, size_t low, size_t high, size_t first, size_t last, uint64_t bytes) {
    if (last <= low || high <= first) return;
    if (first <= low && high <= last) {
      largest_[node] += bytes;
      added_[node] += bytes;
      return;
    }
    const size_t middle = (low + high) / 2;
    visit(2 * node, low, middle, first, last, bytes);
    visit(2 * node + 1, middle, high, first, last, bytes);
    largest_[node] = std::max(largest_[2 * node], largest_[2 * node + 1]) + added_[node];
  }
  uint64_t find(size_t node, size_t low, size_t high, size_t first, size_t last) const {
    if (last <= low || high <= first) return 0;
    if (first <= low && high <= last) return largest_[node];
    const size_t middle = (low + high) / 2;
    const uint64_t below =
        std::max(find(2 * node, low, middle, first, last), find(2 * node + 1, middle, high, first, last));
    return below + added_[node];
  }

  size_t size_;
  std::vector<uint64_t> largest_, added_;
};

struct Interval {
  uint64_t slot = 0;    // of the use that it begins with
  uint64_t length = 0;  // in uses
  uint64_t bytes = 0;
  bool fetch = false;       // the content is used again
  bool write_back = false;  // keeping it saves a write-back too
  double cost = 0;
  uint64_t rank = 0;  // among equals
};

struct Copies {
  std::vector<PlannedFetch> fetches;
  std::vector<PlannedWrite> writes;
};

struct Moved {
  uint64_t fetched = 0;
  uint64_t written = 0;
  uint64_t busier() const { return std::max(fetched, written); }
};

uint64_t reverse_bits(uint64_t value, int width) {
  uint64_t reversed = 0;
  for (int bit = 0; bit < width; ++bit) reversed |= (value >> bit & 1) << (width - 1 - bit);
  return reversed;
}

// The intervals of the recurrence, by slot. A *version* is what one write made, until the next write or the end: it is
// written down once, at the first of its intervals over which it is not kept.
class Intervals {
 public:
  explicit Intervals(const Recurrence& uses) : version_(uses.period(), kNoVersion) {
    std::unordered_map<uint32_t, uint32_t> newest;  // by key; two rounds, for versions that reach over the border
    for (uint64_t slot = 0; slot < uses.period(); ++slot) {
      if (uses.wrote(slot)) newest[uses.key(slot).value] = static_cast<uint32_t>(slot);
    }
    for (uint64_t slot = 0; slot < uses.period(); ++slot) {
      const auto found = newest.find(uses.key(slot).value);
      if (found != newest.end())
        version_[slot] = uses.wrote(slot) ? found->second = static_cast<uint32_t>(slot) : found->second;
      Interval interval;
      interval.slot = slot;
      interval.bytes = uses.bytes(slot);
      const uint64_t freed = uses.freed_after(slot);
      interval.length = freed != 0 ? freed : uses.next(slot) - slot;
      interval.fetch = freed == 0;
      intervals_.push_back(interval);
    }
    // At first as if all of it were kept: else what has several intervals seems to save nothing, stays for no one's
    // sake, and a plan that writes it down may pass for the best.
    weigh(std::vector<bool>(uses.period(), true));
  }
  // Keeping an interval saves a write-back if every other interval of its version is kept.
  void weigh(const std::vector<bool>& keep) {
    std::vector<uint32_t> gaps(version_.size());
    for (size_t slot = 0; slot < version_.size(); ++slot) {
      if (version_[slot] != kNoVersion && !keep[slot]) ++gaps[version_[slot]];
    }
    for (Interval& interval : intervals_) {
      const uint32_t version = version_[interval.slot];
      interval.write_back = version != kNoVersion && gaps[version] == (keep[interval.slot] ? 0u : 1u);
    }
  }
  // What a recurrence moves if `keep` holds.
  Moved moved(const std::vector<bool>& keep) const {
    Moved moved;
    std::vector<bool> written(version_.size());
    for (const Interval& interval : intervals_) {
      if (keep[interval.slot]) continue;
      if (interval.fetch) moved.fetched += interval.bytes;
      const uint32_t version = version_[interval.slot];
      if (version == kNoVersion || written[version]) continue;
      written[version] = true;
      moved.written += interval.bytes;
    }
    return moved;
  }
  // By slot: whether the version that is there after the use is written down in some interval.
  std::vector<bool> written_down(const std::vector<bool>& keep) const {
    std::vector<bool> written(version_.size()), result(version_.size());
    for (size_t slot = 0; slot < version_.size(); ++slot) {
      if (version_[slot] != kNoVersion && !keep[slot]) written[version_[slot]] = true;
    }
    for (size_t slot = 0; slot < version_.size(); ++slot)
      result[slot] = version_[slot] != kNoVersion && written[version_[slot]];
    return result;
  }
  // The same one by one. A version is written down where it first does not stay.
  Copies copies(const std::vector<bool>& keep) const {
    Copies copies;
    const uint64_t period = version_.size();
    std::vector<uint64_t> first(period, kNowhere);  // by version: uses until then
    for (const Interval& interval : intervals_) {
      if (keep[interval.slot]) continue;
      if (interval.fetch) copies.fetches.push_back({interval.slot, interval.length, interval.bytes, interval.length});
      const uint32_t version = version_[interval.slot];
      if (version != kNoVersion) first[version] = std::min(first[version], (interval.slot + period - version) % period);
    }
    for (uint64_t version = 0; version < period; ++version) {
      if (first[version] == kNowhere) continue;
      const Interval& interval = intervals_[(version + first[version]) % period];
      copies.writes.push_back({version, version + first[version], interval.length, interval.bytes});
    }
    return copies;
  }
  // By slot: whether the content is written in every recurrence, now or later.
  std::vector<bool> rewritten() const {
    std::vector<bool> result(version_.size());
    for (size_t slot = 0; slot < version_.size(); ++slot) result[slot] = version_[slot] != kNoVersion;
    return result;
  }
  const std::vector<Interval>& by_slot() const { return intervals_; }

 private:
  static constexpr uint64_t kNowhere = ~uint64_t{0};
  static constexpr uint32_t kNoVersion = ~0u;  // never written: the lower tier has it
  std::vector<Interval> intervals_;
  std::vector<uint32_t> version_;  // by slot: the slot of the write
};

// What copies cost where, by bucket of the use that they belong to: a fetch of the use that needs it, a write of the
// use after which its content does not stay. Between 0 (hidden behind kernels) and 1 (waited for).
class Prices {
 public:
  explicit Prices(size_t buckets) : fetch_(buckets, 1.0F), write_(buckets, 1.0F) {}
  double fetch(size_t bucket) const { return static_cast<double>(fetch_[bucket]); }
  double write(size_t bucket) const { return static_cast<double>(write_[bucket]); }
  // Half way: what is free once everybody goes there is not free any more.
  void learn(const LinkPlan& plan) {
    for (size_t i = 0; i < fetch_.size(); ++i) {
      fetch_[i] = (fetch_[i] + std::max(plan.fetch_prices[i], kPriceMin)) / 2;
      write_[i] = (write_[i] + std::max(plan.write_prices[i], kPriceMin)) / 2;
    }
  }

 private:
  static constexpr float kPriceMin = 0.02F;  // of two that cost no time the one that moves less
  std::vector<float> fetch_, write_;
};

// Sorts by cost. Equals are told apart by rank: first what makes room in the narrowest places, then by the bit-reversed
// place in the pass, counted in bytes from the anchor.
std::vector<Interval> sorted_by_cost(std::vector<Interval> intervals, const Recurrence& uses, double fetch_weight,
                                     const Prices& prices, const std::vector<bool>& narrow) {
  for (Interval& interval : intervals) {
    double saved = 0;
    if (interval.fetch) saved += fetch_weight * prices.fetch(uses.bucket(interval.slot + interval.length));
    if (interval.write_back) saved += (1 - fetch_weight) * prices.write(uses.bucket(interval.slot));
    interval.cost = static_cast<double>(interval.length) / std::max(saved, 1e-6);
  }
  const auto place = [&](const Interval& interval) {
    return (interval.slot + uses.period() - uses.anchor()) % uses.period();
  };
  std::sort(intervals.begin(), intervals.end(), [&](const Interval& a, const Interval& b) {
    return a.cost != b.cost ? a.cost < b.cost : place(a) < place(b);
  });
  for (size_t first = 0; first < intervals.size();) {
    size_t last = first;
    uint64_t total = 0;
    while (last < intervals.size() && intervals[last].cost == intervals[first].cost) total += intervals[last++].bytes;
    const auto width = static_cast<int>(std::bit_width(last - first - 1));  // places for just as many
    const double scale = static_cast<double>(uint64_t{1} << width) / static_cast<double>(total);
    uint64_t passed = 0;
    for (size_t i = first; i < last; ++i) {
      intervals[i].rank = reverse_bits(static_cast<uint64_t>(scale * static_cast<double>(passed)), width);
      const uint64_t end = intervals[i].slot + intervals[i].length;
      if (narrow[uses.bucket(intervals[i].slot)] || narrow[uses.bucket(end)]) intervals[i].rank = 0;
      passed += intervals[i].bytes;
    }
    std::sort(intervals.begin() + static_cast<std::ptrdiff_t>(first),
              intervals.begin() + static_cast<std::ptrdiff_t>(last), [](const Interval& a, const Interval& b) {
                return a.rank != b.rank ? a.rank < b.rank : a.slot < b.slot;
              });
    first = last;
  }
  return intervals;
}

// What the operators of each bucket need whatever is kept, and what is kept across it.
class Timeline {
 public:
  Timeline(const Recurrence& uses, const std::vector<uint64_t>& room) : uses_(uses), base_(uses.bucket_count()) {
    for (size_t bucket = 0; bucket < room.size(); ++bucket) base_.add(bucket, bucket + 1, room[bucket]);
    std::unordered_map<uint32_t, size_t> counted;  // by key: bucket in which its bytes were counted last
    for (uint64_t slot = 0; slot < uses.period(); ++slot) {
      const size_t bucket = uses.bucket(slot);
      const auto [entry, added] = counted.try_emplace(uses.key(slot).value, bucket);
      if (added || entry->second != bucket) base_.add(bucket, bucket + 1, uses.bytes(slot));
      entry->second = bucket;
    }
  }
  // By bucket: whether it is one of the narrowest, which are those that need most, and together at most so many bytes.
  std::vector<bool> narrow(uint64_t bytes_max) const {
    std::vector<size_t> order(uses_.bucket_count());
    std::vector<uint64_t> need(uses_.bucket_count());
    for (size_t bucket = 0; bucket < order.size(); ++bucket) {
      order[bucket] = bucket;
      need[bucket] = base_.largest(bucket, bucket + 1);
    }
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return need[a] > need[b]; });
    std::vector<bool> narrow(order.size());
    uint64_t bytes = 0;
    for (size_t first = 0, last = 0; first < order.size(); first = last) {
      for (; last < order.size() && need[order[last]] == need[order[first]]; ++last) bytes += need[order[last]];
      if (bytes > bytes_max) break;
      for (size_t i = first; i < last; ++i) narrow[order[i]] = true;
    }
    return narrow;
  }
  // Takes what fits, in order; the slots from which content stays.
  std::vector<bool> choose(const std::vector<Interval>& intervals, uint64_t capacity_bytes) const {
    std::vector<bool> keep(uses_.period(), false);
    RangeLoad load = base_;
    for (const Interval& interval : intervals) {
      const Stretch stretch(uses_, interval);
      const uint64_t limit = capacity_bytes > interval.bytes ? capacity_bytes - interval.bytes : 0;
      if (!stretch.empty() && stretch.largest(load) > limit) continue;
      keep[interval.slot] = true;
      stretch.add(load, interval.bytes);
    }
    return keep;
  }
  // Bytes in each bucket when `keep` holds.
  std::vector<uint64_t> loads(const std::vector<Interval>& intervals, const std::vector<bool>& keep) const {
    RangeLoad load = base_;
    for (const Interval& interval : intervals) {
      if (keep[interval.slot]) Stretch(uses_, interval).add(load, interval.bytes);
    }
    std::vector<uint64_t> bytes;
    for (size_t bucket = 0; bucket < uses_.bucket_count(); ++bucket) bytes.push_back(load.largest(bucket, bucket + 1));
    return bytes;
  }

 private:
  // The buckets strictly between the two uses of an interval; at the uses themselves the region is counted already.
  struct Stretch {
    Stretch(const Recurrence& uses, const Interval& interval)
        : count(uses.bucket_count()), first(uses.bucket(interval.slot) + 1),
          last(uses.bucket(interval.slot + interval.length)), wraps(interval.slot + interval.length >= uses.period()) {}
    bool empty() const { return !wraps && first >= last; }
    uint64_t largest(const RangeLoad& load) const {
      return wraps ? std::max(load.largest(first, count), load.largest(0, last)) : load.largest(first, last);
    }
    void add(RangeLoad& load, uint64_t bytes) const {
      if (empty()) return;
      load.add(first, wraps ? count : last, bytes);
      if (wraps) load.add(0, last, bytes);
    }
    size_t count, first, last;
    bool wraps;
  };
  const Recurrence& uses_;
  RangeLoad base_;
};

}  // namespace

void ResidencyPlan::build(const Trace& trace, uint64_t begin, uint64_t end, uint64_t capacity_bytes,
                          double bytes_per_microsecond, uint64_t reuse_bytes_max) {
  TP_ASSERT(begin >= trace.begin() && begin < end && end <= trace.end());
  const Recurrence uses(trace, begin, end);
  std::vector<uint64_t> room = reuse_room(uses, kUsesNear);
  for (uint64_t& bytes : room) bytes = std::min(bytes, reuse_bytes_max);
  const Timeline timeline(uses, room);
  Intervals intervals(uses);
  Prices prices(uses.bucket_count());
  const std::vector<bool> narrow = timeline.narrow(capacity_bytes / kNarrowShare);
  const bool timed = bytes_per_microsecond > 0 && uses.timed_share() >= kTimedShareMin;
  begin_ = begin;
  period_ = end - begin;
  capacity_bytes_ = capacity_bytes;
  seconds_ = 0;
  timed_share_ = uses.timed_share();
  compute_seconds_ = 0;
  if (timed_share_ >= kTimedShareMin) {
    for (size_t bucket = 0; bucket < uses.bucket_count(); ++bucket) compute_seconds_ += uses.microseconds(bucket) / 1e6;
  }
  arrives_.clear();
  early_.clear();
  Moved best;
  double low = 0, high = 1;  // the weight of a fetch lies between
  for (int round = 0; round < (timed ? kTimedRounds : kRounds); ++round) {
    const double fetch_weight = (low + high) / 2;
    std::vector<bool> keep =
        timeline.choose(sorted_by_cost(intervals.by_slot(), uses, fetch_weight, prices, narrow), capacity_bytes);
    const Moved moved = intervals.moved(keep);
    intervals.weigh(keep);
    double up = static_cast<double>(moved.fetched), down = static_cast<double>(moved.written);
    bool better = round == 0 || moved.busier() < best.busier();
    if (timed) {
      Copies copies = intervals.copies(keep);
      const LinkPlan links = plan_links(uses, timeline.loads(intervals.by_slot(), keep), capacity_bytes,
                                        bytes_per_microsecond, copies.fetches, copies.writes);
      prices.learn(links);
      up = links.fetch_stall_seconds;
      down = links.write_stall_seconds;
      better = round == 0 || links.seconds < seconds_;
      if (better) take_arrivals(links.seconds, copies.fetches);
    }
    if (better) {
      best = moved;
      keep_ = std::move(keep);
    }
    // One direction alone: nothing to weigh. Prices would be of use, but they undo the even spread of equals, which is
    // worth more where everything is read once a pass (bench/replay_bench over a recorded inference).
    if (moved.fetched == 0 || moved.written == 0) break;
    if (round < kSettling) continue;
    (up > down ? low : high) = fetch_weight;
  }
  write_ = intervals.written_down(keep_);
  rewritten_ = intervals.rewritten();
  const std::vector<uint64_t> whole = timeline.loads(intervals.by_slot(), std::vector<bool>(period_, true));
  whole_bytes_ = 0;  // freed regions would not need their room: their frames could come and go without a copy
  for (size_t bucket = 0; bucket < whole.size(); ++bucket) {
    whole_bytes_ = std::max(whole_bytes_, whole[bucket] - room[bucket]);
  }
  fetched_bytes_ = best.fetched;
  written_bytes_ = best.written;
}

void ResidencyPlan::take_arrivals(double seconds, const std::vector<PlannedFetch>& fetches) {
  seconds_ = seconds;
  arrives_.assign(period_, kNotSaid);
  early_.clear();
  for (const PlannedFetch& fetch : fetches) {
    arrives_[fetch.slot] = static_cast<uint32_t>(fetch.arrives);
    if (fetch.arrives < fetch.length) early_.push_back({fetch.slot + fetch.arrives, fetch.slot + fetch.length});
  }
  std::sort(early_.begin(), early_.end(), [](const Early& a, const Early& b) { return a.use < b.use; });
}

}  // namespace tierpage
