// The greedy choice of intervals.
#include "core/residency_plan.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

#include "core/status.h"

namespace tierpage {
namespace {

constexpr uint64_t kBucketsMax = 4096;
constexpr int kSettling = 2;  // rounds until it is known which versions are written down anyway
constexpr int kRounds = 6;    // these and those of the bisection

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
    const uint64_t below = std::max(find(2 * node, low, middle, first, last),
                                    find(2 * node + 1, middle, high, first, last));
    return below + added_[node];
  }

  size_t size_;
  std::vector<uint64_t> largest_, added_;
};

struct Interval {
  uint64_t slot = 0;        // of the use that it begins with
  uint64_t length = 0;      // in uses
  uint64_t bytes = 0;
  bool fetch = false;       // the content is used again
  bool write_back = false;  // keeping it saves a write-back too
  double cost = 0;
  uint64_t rank = 0;        // among equals
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

// One recurrence of the trace as rows: what is used when, and what becomes of it.
class Recurrence {
 public:
  Recurrence(const Trace& trace, uint64_t begin, uint64_t end) : trace_(trace), begin_(begin), period_(end - begin) {
    std::unordered_map<uint32_t, uint64_t> first;
    uint32_t lowest = ~0u;
    uint32_t op = 0;
    ops_.resize(period_);
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
    next_.resize(period_);
    for (uint64_t slot = period_; slot-- > 0;) {
      uint64_t& known = first[trace_.at(begin_ + slot).value];
      // Walking backwards, `known` is the next use; at the last one it is the first of the next recurrence.
      next_[slot] = known > slot ? known : known + period_;
      known = slot;
    }
  }
  KeyId key(uint64_t slot) const { return trace_.at(begin_ + slot % period_); }
  uint64_t next(uint64_t slot) const { return next_[slot]; }  // may lie in the next recurrence
  bool wrote(uint64_t slot) const { return trace_.wrote(begin_ + slot % period_); }
  // In how many uses the region is freed without being used again, 0: it is used. Near the end of the window the freeing
  // may still lie in the future: then the recurrence before tells.
  uint64_t freed_after(uint64_t slot) const {
    const uint64_t position = begin_ + slot % period_;
    if (const uint64_t distance = trace_.freed_after(position); distance != 0) return distance;
    if (position < trace_.begin() + period_) return 0;
    return trace_.at(position - period_) == trace_.at(position) ? trace_.freed_after(position - period_) : 0;
  }
  uint64_t period() const { return period_; }
  uint64_t op_count() const { return ops_.back() + 1; }
  uint64_t op(uint64_t slot) const { return ops_[slot % period_]; }
  uint64_t anchor() const { return anchor_; }  // a place that is the same whenever the window begins

 private:
  const Trace& trace_;
  uint64_t begin_, period_;
  uint64_t anchor_ = 0;
  std::vector<uint64_t> next_;
  std::vector<uint32_t> ops_;  // number of each slot's operator
};

// The intervals of the recurrence, by slot. A *version* is what one write made, until the next write or the end: it is
// written down once, at the first of its intervals over which it is not kept.
class Intervals {
 public:
  Intervals(const Trace& trace, const Recurrence& uses) : version_(uses.period(), kNoVersion) {
    std::unordered_map<uint32_t, uint32_t> newest;  // by key; two rounds, for versions that reach over the border
    for (uint64_t slot = 0; slot < uses.period(); ++slot) {
      if (uses.wrote(slot)) newest[uses.key(slot).value] = static_cast<uint32_t>(slot);
    }
    for (uint64_t slot = 0; slot < uses.period(); ++slot) {
      const auto found = newest.find(uses.key(slot).value);
      if (found != newest.end()) version_[slot] = uses.wrote(slot) ? found->second = static_cast<uint32_t>(slot) : found->second;
      Interval interval;
      interval.slot = slot;
      interval.bytes = trace.bytes_of(uses.key(slot));
      const uint64_t freed = uses.freed_after(slot);
      interval.length = freed != 0 ? freed : uses.next(slot) - slot;
      interval.fetch = freed == 0;
      intervals_.push_back(interval);
    }
    // At first: of a version with several intervals nothing is known yet.
    std::vector<uint32_t> count(uses.period());
    for (const uint32_t version : version_) count[version != kNoVersion ? version : 0] += version != kNoVersion;
    for (Interval& interval : intervals_) {
      const uint32_t version = version_[interval.slot];
      interval.write_back = version != kNoVersion && count[version] == 1;
    }
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
    for (size_t slot = 0; slot < version_.size(); ++slot) result[slot] = version_[slot] != kNoVersion && written[version_[slot]];
    return result;
  }
  const std::vector<Interval>& by_slot() const { return intervals_; }

 private:
  static constexpr uint32_t kNoVersion = ~0u;  // never written: the lower tier has it
  std::vector<Interval> intervals_;
  std::vector<uint32_t> version_;  // by slot: the slot of the write
};

// Sorts by cost. Equals are told apart by rank: the bit-reversed place in the pass, counted in bytes from the anchor.
std::vector<Interval> sorted_by_cost(std::vector<Interval> intervals, const Recurrence& uses, double fetch_weight) {
  for (Interval& interval : intervals) {
    const double saved = (interval.fetch ? fetch_weight : 0) + (interval.write_back ? 1 - fetch_weight : 0);
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
    const int width = std::bit_width(last - first - 1);  // places for just as many
    const double scale = static_cast<double>(uint64_t{1} << width) / static_cast<double>(total);
    uint64_t passed = 0;
    for (size_t i = first; i < last; ++i) {
      intervals[i].rank = reverse_bits(static_cast<uint64_t>(scale * static_cast<double>(passed)), width);
      passed += intervals[i].bytes;
    }
    std::sort(intervals.begin() + static_cast<std::ptrdiff_t>(first), intervals.begin() + static_cast<std::ptrdiff_t>(last),
              [](const Interval& a, const Interval& b) { return a.rank != b.rank ? a.rank < b.rank : a.slot < b.slot; });
    first = last;
  }
  return intervals;
}

// Buckets of time on a ring, and what the operators of each need whatever is kept.
class Timeline {
 public:
  Timeline(const Trace& trace, const Recurrence& uses)
      : uses_(uses), buckets_(static_cast<size_t>(std::min(uses.op_count(), kBucketsMax))), base_(buckets_) {
    std::unordered_map<uint32_t, size_t> counted;  // by key: bucket in which its bytes were counted last
    for (uint64_t slot = 0; slot < uses.period(); ++slot) {
      const KeyId key = uses.key(slot);
      const auto [entry, added] = counted.try_emplace(key.value, bucket(slot));
      if (added || entry->second != bucket(slot)) base_.add(bucket(slot), bucket(slot) + 1, trace.bytes_of(key));
      entry->second = bucket(slot);
    }
  }
  // Takes what fits, in order; the slots from which content stays.
  std::vector<bool> choose(const std::vector<Interval>& intervals, uint64_t capacity_bytes) const {
    std::vector<bool> keep(uses_.period(), false);
    RangeLoad load = base_;
    for (const Interval& interval : intervals) {
      // The buckets strictly between the two uses; at the uses themselves the region is counted already.
      const size_t first = bucket(interval.slot) + 1;
      const size_t last = bucket(interval.slot + interval.length);
      const bool wraps = interval.slot + interval.length >= uses_.period();
      const uint64_t limit = capacity_bytes > interval.bytes ? capacity_bytes - interval.bytes : 0;
      const bool at_once = !wraps && first >= last;
      const uint64_t most = at_once ? 0
                            : wraps ? std::max(load.largest(first, buckets_), load.largest(0, last))
                                    : load.largest(first, last);
      if (most > limit && !at_once) continue;
      keep[interval.slot] = true;
      if (at_once) continue;
      load.add(first, wraps ? buckets_ : last, interval.bytes);
      if (wraps) load.add(0, last, interval.bytes);
    }
    return keep;
  }

  // The most that is held at once where every interval is kept.
  uint64_t whole(const std::vector<Interval>& intervals) const {
    std::vector<uint64_t> begins(buckets_ + 1), ends(buckets_ + 1);  // bytes kept from, and up to, a bucket
    uint64_t held = 0;
    for (const Interval& interval : intervals) {
      const size_t first = bucket(interval.slot) + 1;
      const size_t last = bucket(interval.slot + interval.length);
      const bool wraps = interval.slot + interval.length >= uses_.period();
      if (!wraps && first >= last) continue;
      begins[first] += interval.bytes;
      ends[last] += interval.bytes;
      if (wraps) held += interval.bytes;
    }
    uint64_t most = 0;
    for (size_t i = 0; i < buckets_; ++i) {
      held = held + begins[i] - ends[i];
      most = std::max(most, held + base_.largest(i, i + 1));
    }
    return most;
  }

 private:
  size_t bucket(uint64_t slot) const { return static_cast<size_t>(uses_.op(slot) * buckets_ / uses_.op_count()); }
  const Recurrence& uses_;
  size_t buckets_;
  RangeLoad base_;
};

}  // namespace

void ResidencyPlan::build(const Trace& trace, uint64_t begin, uint64_t end, uint64_t capacity_bytes) {
  TP_ASSERT(begin >= trace.begin() && begin < end && end <= trace.end());
  const Recurrence uses(trace, begin, end);
  const Timeline timeline(trace, uses);
  Intervals intervals(trace, uses);
  begin_ = begin;
  period_ = end - begin;
  capacity_bytes_ = capacity_bytes;
  Moved best;
  double low = 0, high = 1;  // the weight of a fetch lies between
  for (int round = 0; round < kRounds; ++round) {
    const double fetch_weight = (low + high) / 2;
    std::vector<bool> keep = timeline.choose(sorted_by_cost(intervals.by_slot(), uses, fetch_weight), capacity_bytes);
    const Moved moved = intervals.moved(keep);
    intervals.weigh(keep);
    if (round == 0 || moved.busier() < best.busier()) {
      best = moved;
      keep_ = std::move(keep);
    }
    if (moved.fetched == 0 || moved.written == 0) break;  // one direction alone: nothing to weigh
    if (round < kSettling) continue;
    (moved.fetched > moved.written ? low : high) = fetch_weight;
  }
  write_ = intervals.written_down(keep_);
  whole_bytes_ = timeline.whole(intervals.by_slot());
  fetched_bytes_ = best.fetched;
  written_bytes_ = best.written;
}

}  // namespace tierpage
