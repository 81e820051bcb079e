// What a running pager has counted, as Python values.
#pragma once

#include <pybind11/pybind11.h>

#include "engine/runtime.h"

namespace tierpage {

void put_stalls(pybind11::dict& out, const StallStats& stalls);
void put_work(pybind11::dict& out, const WorkTimes& work);  // of the pager thread
void put_links(pybind11::dict& out, const LinkUses& links, const std::string& prefix);
void put_codes(pybind11::dict& out, const RuntimeReports::Snapshot& snapshot);
void put_stuck(pybind11::dict& out, const StuckTransfers& stuck);
void put_writes(pybind11::dict& out, const WriteEconomy& writes);
// The residency plan in force and the last recurrence under it; nothing where there is no plan.
void put_plan(pybind11::dict& out, const RuntimeReports::Snapshot& snapshot);

pybind11::list event_rows(Runtime& runtime);
pybind11::list stall_rows(Runtime& runtime);
pybind11::list level_rows(Runtime& runtime);
pybind11::dict stalled_most_rows(Runtime& runtime);
pybind11::list tag_rows(Runtime& runtime);

}  // namespace tierpage
