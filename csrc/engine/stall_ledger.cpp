// Sums of waits, and the sketch of the names that waited longest.
#include "engine/stall_ledger.h"

#include <algorithm>
#include <numeric>

namespace tierpage {
namespace {

uint64_t sum_of(const CauseTimes& times) { return std::accumulate(times.begin(), times.end(), uint64_t{0}); }

}  // namespace

uint64_t StalledName::known_ns() const { return sum_of(ns); }

void StalledNames::add(const char* name, const Stall& stall) {
  const auto weight = [](const StalledName& row) { return row.known_ns() + row.unknown_ns; };
  // Names mostly are the same pointer again; overloads of one operator share the text only.
  auto row = std::find_if(rows_.begin(), rows_.end(), [name](const StalledName& known) { return known.name == name; });
  if (row == rows_.end()) {
    row = std::find_if(rows_.begin(), rows_.end(),
                       [name](const StalledName& known) { return std::string_view(known.name) == name; });
  }
  if (row == rows_.end()) {
    StalledName fresh;
    fresh.name = name;
    if (rows_.size() < kStalledNamesMax) {
      row = rows_.insert(rows_.end(), fresh);
    } else {
      row = std::min_element(rows_.begin(), rows_.end(),
                             [&](const StalledName& a, const StalledName& b) { return weight(a) < weight(b); });
      fresh.unknown_ns = weight(*row);
      *row = fresh;
    }
  }
  for (size_t i = 0; i < row->ns.size(); ++i) row->ns[i] += stall.ns[i];
  ++row->count;
  row->bytes += stall.details.bytes;
  row->predicted_bytes += stall.details.predicted_bytes;
}

std::vector<StalledName> StalledNames::longest_first() const {
  std::vector<StalledName> rows = rows_;
  std::stable_sort(rows.begin(), rows.end(),
                   [](const StalledName& a, const StalledName& b) { return a.known_ns() > b.known_ns(); });
  return rows;
}

void StallLedger::charge(Open& wait, int64_t now_ns, StallCause next) {
  if (now_ns > wait.looked_ns) {
    wait.stall.ns[static_cast<size_t>(index_of(wait.cause))] += static_cast<uint64_t>(now_ns - wait.looked_ns);
    wait.looked_ns = now_ns;
  }
  wait.cause = next;
}

// What went by from the beginning to now was planning.
void StallLedger::begin(SlotId slot, int64_t start_ns, StallCause cause, int64_t now_ns) {
  Open wait;
  wait.stall.thread = slot.value;
  wait.stall.start_ns = wait.looked_ns = start_ns;
  charge(wait, now_ns, cause);
  open_.push_back(wait);
}

void StallLedger::describe(SlotId slot, const WaitDetails& details, const char* tag) {
  for (Open& wait : open_) {
    if (wait.stall.thread != slot.value) continue;
    wait.stall.details = details;
    wait.stall.tag = tag;
  }
}

bool StallLedger::end(SlotId slot, int64_t now_ns, Stall* stall) {
  const auto wait =
      std::find_if(open_.begin(), open_.end(), [slot](const Open& open) { return open.stall.thread == slot.value; });
  if (wait == open_.end()) return false;
  now_ns = std::max(now_ns, wait->looked_ns);
  charge(*wait, now_ns, StallCause::kHost);
  wait->stall.duration_ns = now_ns - wait->stall.start_ns;
  *stall = wait->stall;
  open_.erase(wait);
  count(*stall);
  return true;
}

Stall StallLedger::add_whole(const char* name, StallCause cause, int64_t start_ns, int64_t now_ns) {
  Stall stall;
  stall.details.name = name;
  stall.thread = kNoThread;
  stall.start_ns = start_ns;
  stall.duration_ns = std::max<int64_t>(now_ns - start_ns, 0);
  stall.ns[static_cast<size_t>(index_of(cause))] = static_cast<uint64_t>(stall.duration_ns);
  count(stall);
  return stall;
}

void StallLedger::count(const Stall& stall) {
  const auto waited = static_cast<uint64_t>(stall.duration_ns);
  for (size_t i = 0; i < stall.ns.size(); ++i) {
    stats_.ns[i] += stall.ns[i];
    stats_.count[i] += stall.ns[i] > 0;
  }
  stats_.total_ns += waited;
  ++stats_.waits;
  if (stall.details.allocation) stats_.allocate_ns += waited;
  stats_.max_ns = std::max(stats_.max_ns, waited);
  operators_.add(stall.details.name, stall);
  if (stall.tag[0] != '\0') tags_.add(stall.tag, stall);
}

void StallLedger::reset_names() {
  operators_.clear();
  tags_.clear();
}

}  // namespace tierpage
