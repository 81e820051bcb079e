// Conversion of counts and logs to Python values. No logic.
#include "reports.h"

#include <pybind11/stl.h>

#include <iterator>
#include <string>

namespace py = pybind11;

namespace tierpage {
namespace {

double seconds(uint64_t ns) { return static_cast<double>(ns) * 1e-9; }

constexpr const char* kLinkNames[kLinkCount] = {"to_device", "to_host", "nvme_read", "nvme_write"};

py::str key(const std::string& prefix, const char* name) { return {prefix + name}; }

void put_causes(py::dict& out, const std::string& prefix, const CauseTimes& ns) {
  for (int i = 0; i < kStallCauseCount; ++i) {
    out[key(prefix, name_of(static_cast<StallCause>(i)))] = seconds(ns[static_cast<size_t>(i)]);
  }
}

py::dict row_of(const StalledName& known) {
  py::dict row;
  row["name"] = known.name;
  row["count"] = known.count;
  row["bytes"] = known.bytes;
  row["predicted_bytes"] = known.predicted_bytes;
  row["unknown_seconds"] = seconds(known.unknown_ns);
  row["seconds"] = seconds(known.known_ns());
  put_causes(row, "seconds.", known.ns);
  return row;
}

py::dict row_of(const Stall& stall) {
  const WaitDetails& details = stall.details;
  py::dict row;
  row["name"] = details.name;
  row["tag"] = stall.tag;
  row["kind"] = details.allocation ? "allocate_stall" : "stall";
  row["thread"] = stall.thread == StallLedger::kNoThread ? -1 : static_cast<int64_t>(stall.thread);
  row["start_ns"] = stall.start_ns;
  row["duration_ns"] = stall.duration_ns;
  py::dict causes;
  for (int i = 0; i < kStallCauseCount; ++i) {
    const uint64_t ns = stall.ns[static_cast<size_t>(i)];
    if (ns > 0) causes[name_of(static_cast<StallCause>(i))] = ns;
  }
  row["causes_ns"] = causes;
  row["bytes"] = details.bytes;
  row["pages"] = details.pages;
  row["predicted_bytes"] = details.predicted_bytes;
  row["region_count"] = details.region_count;
  py::list regions;
  for (const WaitDetails::Part& part : details.largest) {
    if (part.region.valid()) regions.append(py::make_tuple(part.region.value, part.pages, part.bytes));
  }
  row["regions"] = regions;
  return row;
}

}  // namespace

void put_stalls(py::dict& out, const StallStats& stalls) {
  put_causes(out, "stall_seconds.", stalls.ns);
  out["stall_seconds.total"] = seconds(stalls.total_ns);
  out["stall_seconds.allocate"] = seconds(stalls.allocate_ns);
  out["stall_seconds.max"] = seconds(stalls.max_ns);
  for (int i = 0; i < kStallCauseCount; ++i) {
    out[key("stall_count.", name_of(static_cast<StallCause>(i)))] = stalls.count[static_cast<size_t>(i)];
  }
  out["stall_count.total"] = stalls.waits;
}

void put_links(py::dict& out, const LinkUses& links, const std::string& prefix) {
  for (size_t i = 0; i < kLinkCount; ++i) {
    out[key(prefix + "link_seconds.", kLinkNames[i])] = seconds(links[i].busy_ns);
    out[key(prefix + "link_bytes.", kLinkNames[i])] = links[i].bytes;
  }
}

void put_work(py::dict& out, const WorkTimes& work) {
  const auto seconds_of = [](int64_t ns) { return static_cast<double>(ns) * 1e-9; };
  out["pager_thread_seconds.planning"] = seconds_of(work.planning_ns);
  out["pager_thread_seconds.mapping"] = seconds_of(work.mapping_ns);
  out["pager_thread_seconds.copying"] = seconds_of(work.copying_ns);
  out["pager_thread_seconds.completing"] = seconds_of(work.completing_ns);
  out["pager_thread_seconds.sleeping"] = seconds_of(work.sleeping_ns);
  out["pager_thread_count.rounds"] = work.rounds;
  out["pager_thread_count.sleeps"] = work.sleeps;
  out["pager_thread_count.mappings"] = work.mappings;
  out["pager_thread_count.copies"] = work.copies;
}

void put_codes(py::dict& out, const RuntimeReports::Snapshot& snapshot) {
  const char* const ways[] = {"encode", "decode"};
  for (size_t i = 0; i < snapshot.codes.size(); ++i) {
    const CodeUse& use = snapshot.codes[i];
    out[key("code_seconds.", ways[i])] = seconds(use.busy_ns);
    out[key("code_pages.", ways[i])] = use.pages;
    out[key("content_bytes.", ways[i])] = use.bytes;
    out[key("coded_bytes.", ways[i])] = use.coded_bytes;
    out[key("code_failures.", ways[i])] = use.failures;
  }
  const char* const types[] = {"other", "bfloat16", "float16", "float32"};
  static_assert(std::size(types) == kElementTypes);
  for (size_t i = 0; i < kElementTypes; ++i) {
    out[key("content_bytes.encode.", types[i])] = snapshot.codes[0].by_type[i].content;
    out[key("coded_bytes.encode.", types[i])] = snapshot.codes[0].by_type[i].stored;
  }
  const auto put = [&out](const char* kind, const std::string& whose, uint64_t bytes) {
    out[key(kind, (whose + ".current").c_str())] = bytes;
  };
  for (const Tier tier : {Tier::kHost, Tier::kNvme}) {
    put("compressed_bytes.", name_of(tier), snapshot.below.coded[index_of(tier)].stored);
    put("uncompressed_bytes.", name_of(tier), snapshot.below.coded[index_of(tier)].content);
  }
  for (const auto& [tag, bytes] : snapshot.below.by_tag) {
    put("stored_bytes.tag.", tag, bytes.stored);
    put("content_bytes.tag.", tag, bytes.content);
  }
  out["code_ring_bytes"] = snapshot.coder_bytes;
}

void put_stuck(py::dict& out, const StuckTransfers& stuck) {
  out["stuck_transfers.current"] = stuck.count;
  out["stuck_bytes.current"] = stuck.bytes;
  out["stuck_seconds.current"] = static_cast<double>(stuck.oldest_ns) * 1e-9;
}

void put_writes(py::dict& out, const WriteEconomy& writes) {
  out["nvme_write_bytes.total"] = writes.total();
  out["nvme_write_bytes.last_day.current"] = writes.last_day();
  out["nvme_write_bytes.over_budget"] = writes.over_budget();
  if (!writes.limited()) return;
  out["nvme_write_bytes.last_period.current"] = writes.last_period();
  out["budget_bytes.nvme_write"] = writes.bytes_max();
  out["budget_seconds.nvme_write"] = writes.period_seconds();
}

void put_plan(py::dict& out, const RuntimeReports::Snapshot& snapshot) {
  const PlanReport& plan = snapshot.plan;
  if (plan.period_uses == 0) return;
  out["plan.period_uses"] = plan.period_uses;
  out["plan.capacity_bytes"] = plan.capacity_bytes;
  out["plan.whole_bytes"] = plan.whole_bytes;
  out["plan.fetched_bytes"] = plan.fetched_bytes;
  out["plan.written_bytes"] = plan.written_bytes;
  out["plan.seconds"] = plan.seconds;
  out["plan.timed_share"] = plan.timed_share;
  const RecurrenceTotals& last = snapshot.recurrence;
  if (last.uses == 0) return;
  out["recurrence.uses"] = last.uses;
  out["recurrence.fetched_bytes"] = last.fetched_bytes;
  out["recurrence.written_bytes"] = last.written_bytes;
  out["recurrence.elapsed_seconds"] = seconds(last.elapsed_ns);
  put_causes(out, "recurrence.stall_seconds.", last.stalled_by_cause_ns);
  out["recurrence.stall_seconds.total"] = seconds(last.stalled_ns);
  put_links(out, last.links, "recurrence.");
}

py::list event_rows(Runtime& runtime) {
  py::list rows;
  for (const Event& event : runtime.reports().log().snapshot()) {
    rows.append(py::make_tuple(name_of(event.kind), event.start_ns, event.duration_ns, event.bytes, event.page));
  }
  return rows;
}

py::list stall_rows(Runtime& runtime) {
  py::list rows;
  for (const Stall& stall : runtime.reports().stalls()) rows.append(row_of(stall));
  return rows;
}

py::list level_rows(Runtime& runtime) {
  py::list rows;
  for (const Levels& levels : runtime.reports().levels()) {
    py::dict row;
    row["at_ns"] = levels.at_ns;
    for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme})
      row[name_of(tier)] = levels.resident_bytes[index_of(tier)];
    row["arriving"] = levels.arriving_bytes;
    row["leaving"] = levels.leaving_bytes;
    rows.append(row);
  }
  return rows;
}

py::list tag_rows(Runtime& runtime) {
  py::list rows;
  for (const RuntimeReports::TagRow& tag : runtime.reports().tag_rows()) {
    py::dict row;
    row["name"] = tag.name;
    row["bytes"] = tag.placement.bytes;
    row["device"] = tag.placement.device;
    row["host"] = tag.placement.host;
    row["nvme"] = tag.placement.nvme;
    row["source"] = tag.placement.source;
    row["pinned"] = tag.placement.pinned;
    row["uses"] = tag.uses;
    rows.append(row);
  }
  return rows;
}

py::dict stalled_most_rows(Runtime& runtime) {
  const RuntimeReports::StalledMost most = runtime.reports().stalled_most();
  py::list operators, tags;
  for (const StalledName& known : most.operators) operators.append(row_of(known));
  for (const StalledName& known : most.tags) tags.append(row_of(known));
  py::list overflows;
  for (const Overflows::Row& row : most.overflows) {
    py::dict known;
    known["name"] = row.name;
    known["count"] = row.count;
    known["bytes"] = row.bytes;
    overflows.append(known);
  }
  py::dict out;
  out["operators"] = operators;
  out["tags"] = tags;
  out["overflows"] = overflows;
  return out;
}

}  // namespace tierpage
