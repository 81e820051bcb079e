// A machine with a clock under a Pager: one program thread, one stream of kernels, two links, a disk and the pager
// thread, with measured rates. Runs recorded programs through the very core that production runs, and tells how long
// each step would take and what it would move. The planner is developed and held to its bounds with it, without a GPU.
//
// What is modelled: kernels run one after the other and take what the recording says; the program thread runs ahead of
// them until it has to wait for pages; copies go in pieces, a few with the device at a time, urgent ones first, both
// directions slower when both are busy; mapping, unmapping and creating frames take the pager thread's time; it sees
// completions when it next looks; pages are coded before they go down and decoded when they have come up, beside the
// links. What is not: contents (sim_world of the tests has those), several streams, jitter, coders that take time from
// kernels, pages that wait for a place in the coder's ring, and a disk that reads and writes at once: its queue runs at
// the rate of what was given to it last.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model/link_limits.h"
#include "core/pager/pager.h"
#include "estimate/program.h"

namespace tierpage::estimate {

// Rates in bytes per second, costs in microseconds. Defaults: an H200 on PCIe 5, docs/benchmarks.md.
struct MachineRates {
  double host_to_device = 55.2e9;
  double device_to_host = 55.0e9;
  double duplex_factor = 0.86;  // of each direction's rate while both are busy
  double disk_read = 3.5e9;
  double disk_write = 2.5e9;
  double map_us =
      100;  // map and set access, one frame; some wait for a piece on its way down (bench/notes/2026-11-lab-book.md)
  double unmap_us = 40;
  double create_us = 25;  // the memory of a frame, and giving back another's
  double submit_us = 12;  // to hand one piece of a copy to the device
  double launch_us = 7;   // program thread, per operator
  double wake_us = 40;    // from the grant to the waiting thread's next instruction
  double look_us = 15;    // until the pager thread sees a completion
  double rouse_us = 0;    // until it begins to work when it slept, because nothing moved
  uint32_t launches_ahead_max = 1000;
  double ahead_us_max = 1e9;  // work queued before the program thread waits for the kernels
  uint64_t piece_bytes = kLimitOfModel.piece_bytes;
  // With PagerConfig::compress: bytes of a code by those of its page (0.70 for weights in bfloat16; 1: none gets
  // shorter), and content that is coded in a second.
  double code_ratio = 1;
  double encode = 550e9;
  double decode = 1970e9;
};

struct StepReport {
  double seconds = 0;
  double compute_seconds = 0;   // kernels alone
  double fault_seconds = 0;     // the program thread waited for pages
  double allocate_seconds = 0;  // ... for room
  double to_device_busy_seconds = 0;
  double to_host_busy_seconds = 0;
  uint64_t to_device_bytes = 0;  // over the link: of codes, where pages are coded
  uint64_t to_host_bytes = 0;
  uint64_t saved_up_bytes = 0;  // of those pages, what their codes made shorter; from and to the disk too
  uint64_t saved_down_bytes = 0;
  uint64_t disk_read_bytes = 0;
  uint64_t disk_write_bytes = 0;
  uint64_t faults = 0;
  uint64_t maps = 0;
  uint64_t frames_created = 0;
  uint64_t uses = 0;            // of regions by operators and allocations
  uint64_t uses_predicted = 0;  // that came as the trace had said
  uint64_t pages_ahead = 0;     // fetched before anybody asked
  uint64_t pages_on_demand = 0;
  uint64_t decisions = 0;  // hash of all that the pager ordered up to the step's end (decision_hash.h)
};

struct ReplayOptions {
  PagerConfig pager;
  MachineRates rates;
  uint64_t list_run_bytes_max = 0;  // 0: a sixteenth of the device budget, as in engine/runtime.h
  int loops = 4;                    // how often the repeating step runs
  bool timed = true;                // the pager learns how long operators take
  bool check = false;               // check_invariants after every round of the pager thread
};

// One report for each step (from one S to the next), the warm-up steps of the recording first.
// kOutOfMemory where an operator got that error.
Status replay(const Program& program, const ReplayOptions& options, std::vector<StepReport>* reports);

}  // namespace tierpage::estimate
