#include "core/pager/victim_order.h"

#include <algorithm>

namespace tierpage {

VictimOrder::VictimOrder(const Memory& memory, const Foresight& foresight, ChangedRegions& changed, Expect expect,
                         May may_stand)
    : memory_(memory), foresight_(foresight), changed_(changed), expect_(std::move(expect)),
      may_stand_(std::move(may_stand)) {}

// --- the definition ----------------------------------------------------------------------------------------------

// What is not wanted leaves before what is, whatever the distances, and in the order of last uses: it will be fetched
// again in any case, and the work on the oldest has ended first. But what has stayed for a good part of the way to its
// next use, because another plan held or none, is worth keeping that long: it leaves after those, the farthest first.
// So a new plan takes over without fetching twice.
uint64_t VictimOrder::rank_of(const Outlook& use, Clocks clocks) {
  const uint64_t distance = distance_of(use, clocks), age = clocks.end - use.last;
  switch (line_of(use, clocks)) {
    case Line::kFresh: return kLeaves | kFresh | age;
    case Line::kStale: return kLeaves | distance;
    default: return distance;
  }
}

VictimOrder::Line VictimOrder::line_of(const Outlook& use, Clocks clocks) {
  if (use.next == Trace::kNever) return Line::kNever;
  if (use.wanted <= clocks.end) return Line::kWanted;
  return ageing(clocks) <= fresh_until(use) ? Line::kFresh : Line::kStale;  // age <= distance / 4
}

// --- places -------------------------------------------------------------------------------------------------------

void VictimOrder::Alarms::add(uint64_t time, KeyId key) {
  due_.emplace_back(time, key);
  std::push_heap(due_.begin(), due_.end(), std::greater<>());
}

KeyId VictimOrder::Alarms::take_due(uint64_t time) {
  if (due_.empty() || due_.front().first > time) return KeyId::none();
  const KeyId key = due_.front().second;
  std::pop_heap(due_.begin(), due_.end(), std::greater<>());
  due_.pop_back();
  return key;
}

VictimOrder::Entry& VictimOrder::entry_of(KeyId key) {
  if (entries_.size() <= key.value) entries_.resize(key.value + 1);
  Entry& entry = entries_[key.value];
  if (entry.epoch != epoch_) entry = {{}, epoch_, Line::kAside};
  return entry;
}

VictimOrder::Line VictimOrder::standing(KeyId key) const {
  if (key.value >= entries_.size() || entries_[key.value].epoch != epoch_) return Line::kAside;
  return entries_[key.value].line;
}

void VictimOrder::take_out(Entry& entry) {
  // Of a region that is not used again the pages' marks stay: who meets them looks here.
  if (entry.line > Line::kNever) places(entry.line).erase(place_in_ring(entry));
  entry.line = Line::kAside;
}

// Alarms of uses that are over go off as well, and change nothing.
void VictimOrder::place(KeyId key) {
  const RegionId region = foresight_.trace().region_of(key);
  Entry& entry = entry_of(key);
  const Outlook use = region.valid() ? expect_(key) : Outlook{};
  const Line line = region.valid() ? line_of(use, placed_at_) : Line::kAside;
  const bool known = entry.use == use;  // and its alarms are set
  if (!known || entry.line != line) take_out(entry);
  entry.use = use;
  if (line == Line::kNever) {
    for (const PageId id : memory_.region(region).pages) places(line).insert(id.value);
  }
  if (entry.line == line) return;
  entry.line = line;
  if (line <= Line::kNever) return;
  places(line).insert(place_in_ring(entry));
  if (known || entry.line == Line::kWanted) return;
  if (entry.line == Line::kFresh) stale_alarms_.add(fresh_until(use) + 1, key);
  if (use.wanted != Trace::kNever) wanted_alarms_.add(use.wanted, key);
}

void VictimOrder::place_all() {
  ++epoch_;
  for (IndexSet& line : places_) line.clear();
  stale_alarms_.clear();
  wanted_alarms_.clear();
  RegionId placed;
  for (const PageId id : memory_.pages.ids()) {
    const RegionId region = memory_.pages[id].region;
    if (region == placed || !may_stand_(id)) continue;
    placed = region;
    place(memory_.region(region).key);
  }
}

bool VictimOrder::is_far(Clocks clocks) const {
  const Trace& trace = foresight_.trace();
  if (epoch_ == 0 || plan_serial_ != foresight_.plan_serial() || clocks.cursor < placed_at_.cursor) return true;
  if (clocks.cursor == Trace::kNever || placed_at_.cursor + 1 < trace.begin()) return true;
  return clocks.cursor - placed_at_.cursor + clocks.end - placed_at_.end > memory_.regions.size();
}

void VictimOrder::catch_up() {
  const Clocks clocks = now();
  const bool far = is_far(clocks);
  const Clocks before = std::exchange(placed_at_, clocks);
  plan_serial_ = foresight_.plan_serial();
  noted_.clear();
  changed_.take(noted_);
  if (far) return place_all();
  const Trace& trace = foresight_.trace();
  for (uint64_t at = before.cursor + 1; at <= clocks.cursor; ++at) place(trace.at(at));
  for (uint64_t at = before.end; at < clocks.end; ++at) place(trace.at(at));
  for (const RegionId id : noted_) {
    if (memory_.live(id)) place(memory_.region(id).key);
  }
  const auto ring = [&](Alarms& alarms, uint64_t time) {
    for (KeyId key = alarms.take_due(time); key.valid(); key = alarms.take_due(time)) {
      if (standing(key) != Line::kAside) place(key);
    }
  };
  ring(stale_alarms_, ageing(clocks));
  ring(wanted_alarms_, clocks.end);
}

// --- the walk -----------------------------------------------------------------------------------------------------

// Positions that stand in a line lie behind the cursor and before the end, so no two of them share a place in the ring.
uint64_t VictimOrder::last_in(const IndexSet& line, uint64_t end) const {
  const uint64_t mask = foresight_.trace().uses_max() - 1;
  if (end <= placed_at_.cursor + 1) return Trace::kNever;
  const uint64_t place = (end - 1) & mask;
  uint64_t found = line.last_below(place + 1), back = place - found;
  if (found == IndexSet::kNone) {
    found = line.last_below(mask + 1);
    if (found == IndexSet::kNone) return Trace::kNever;
    back = place + mask + 1 - found;
  }
  return back < end - 1 - placed_at_.cursor ? end - 1 - back : Trace::kNever;
}

uint64_t VictimOrder::first_in(const IndexSet& line, uint64_t begin) const {
  const uint64_t mask = foresight_.trace().uses_max() - 1;
  const uint64_t place = begin & mask;
  uint64_t found = line.first_from(place), ahead = found - place;
  if (found == IndexSet::kNone) {
    found = line.first_from(0);
    if (found == IndexSet::kNone) return Trace::kNever;
    ahead = found + mask + 1 - place;
  }
  return begin + ahead < placed_at_.end ? begin + ahead : Trace::kNever;
}

void VictimOrder::walk(const Candidate& below, const May& eligible, const Visit& visit) {
  if (!walk_never(below, eligible, visit)) return;
  for (const Line line : {Line::kFresh, Line::kStale, Line::kWanted}) {
    if (!walk_line(line, below, eligible, visit)) return;
  }
}

bool VictimOrder::walk_never(const Candidate& below, const May& eligible, const Visit& visit) {
  if (below.first != Trace::kNever) return true;
  IndexSet& line = places(Line::kNever);
  for (uint64_t i = below.second.value; (i = line.last_below(i)) != IndexSet::kNone;) {
    const PageId id(static_cast<uint32_t>(i));
    if (!memory_.pages.exists(id) || standing(memory_.key_of(id)) != Line::kNever || !may_stand_(id)) {
      line.erase(i);
    } else if (eligible(id) && !visit({Trace::kNever, id})) {
      return false;
    }
  }
  return true;
}

bool VictimOrder::walk_line(Line line, const Candidate& below, const May& eligible, const Visit& visit) {
  const bool by_last = line == Line::kFresh;
  const uint64_t kind = by_last ? kLeaves | kFresh : line == Line::kStale ? kLeaves : 0;
  const uint64_t kinds = kLeaves | kFresh;
  uint64_t at = by_last ? placed_at_.cursor + 1 : placed_at_.end;  // from here on, or before here
  if (below.first != Trace::kNever && (below.first & kinds) <= kind) {
    if ((below.first & kinds) < kind) return true;  // all of this line has passed
    const uint64_t rank = below.first & ~kinds;
    at = by_last ? placed_at_.end - rank : placed_at_.cursor + rank + 1;
  }
  for (;;) {
    at = by_last ? first_in(places(line), at) : last_in(places(line), at);
    if (at == Trace::kNever) return true;
    const uint64_t rank = kind | (by_last ? placed_at_.end - at : at - placed_at_.cursor);
    if (!walk_region(foresight_.trace().at(at), rank, below, eligible, visit)) return false;
    if (by_last) ++at;
  }
}

bool VictimOrder::walk_region(KeyId key, uint64_t rank, const Candidate& below, const May& eligible,
                              const Visit& visit) {
  const RegionId region = foresight_.trace().region_of(key);
  bool stands = false;
  if (region.valid()) {
    pages_ = memory_.region(region).pages;
    if (!std::is_sorted(pages_.begin(), pages_.end())) std::sort(pages_.begin(), pages_.end());
    for (size_t i = pages_.size(); i-- > 0;) {
      const Candidate candidate{rank, pages_[i]};
      const bool may = eligible(candidate.second);
      stands = stands || may || may_stand_(candidate.second);
      if (may && candidate < below && !visit(candidate)) return false;
    }
  }
  if (!stands) take_out(entries_[key.value]);
  return true;
}

void VictimOrder::forget() {
  epoch_ = 0;
  std::vector<Entry>().swap(entries_);
  for (IndexSet& line : places_) line.forget();
  stale_alarms_ = wanted_alarms_ = {};
}

// --- invariants -----------------------------------------------------------------------------------------------------

// Its place is to be looked for at the next catch_up().
bool VictimOrder::pending(RegionId region) const {
  const uint64_t last = foresight_.trace().last_use(memory_.region(region).key);
  return changed_.noted(region) || (last != Trace::kNever && last >= placed_at_.end);
}

void VictimOrder::check_invariants() const {
  for (const IndexSet& line : places_) line.check_invariants();
  const Clocks clocks = now();
  if (is_far(clocks) || clocks.cursor != placed_at_.cursor) return;  // places will be looked for anew
  for (const PageId id : memory_.pages.ids()) {
    const RegionId region = memory_.pages[id].region;
    if (!may_stand_(id) || pending(region)) continue;
    const KeyId key = memory_.region(region).key;
    const Line line = standing(key);
    const Outlook use = expect_(key);
    TP_ASSERT(line == line_of(use, placed_at_) && entries_[key.value].use == use);
    if (line == Line::kNever) TP_ASSERT(places(line).contains(id.value));
  }
  std::array<uint64_t, 5> stand{};
  for (const Entry& entry : entries_) {
    if (entry.epoch != epoch_ || entry.line <= Line::kNever) continue;
    ++stand[static_cast<size_t>(entry.line)];
    TP_ASSERT(places(entry.line).contains(place_in_ring(entry)));
  }
  for (const Line line : {Line::kFresh, Line::kStale, Line::kWanted}) {
    uint64_t marked = 0;
    for (uint64_t at = places(line).first_from(0); at != IndexSet::kNone; at = places(line).first_from(at + 1)) {
      ++marked;
    }
    TP_ASSERT(marked == stand[static_cast<size_t>(line)]);
  }
}

}  // namespace tierpage
