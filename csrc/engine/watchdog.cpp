#include "engine/watchdog.h"

#include <cstdio>
#include <utility>

namespace tierpage {
namespace {

constexpr double kSecondsAnHour = 3600;
constexpr double kEnduranceDays = 365;

double gigabytes(uint64_t bytes) { return static_cast<double>(bytes) * 1e-9; }

}  // namespace

// One line for each transfer that is the oldest of those that hang, or, where none does, one for an operator that waits
// while nothing comes to an end.
void Watchdog::look_at_progress(StuckTransfers stuck, bool operator_waits, int64_t now_ns, const Describe& describe) {
  stuck_ = std::move(stuck);
  if (stuck_.count > 0) {
    if (stuck_said_ == stuck_.oldest) return;
    stuck_said_ = stuck_.oldest;
    say(stuck_.text + " (" + describe() +
        "). Who needs the page waits on; see the kernel log for the disk, or interrupt the program.");
    return;
  }
  if (!operator_waits || waits_said_ || now_ns - last_progress_ns_ < patience_ns()) return;
  waits_said_ = true;
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.3g", stall_report_seconds_);
  say(std::string("nothing has come to an end for ") + seconds + " s while an operator waits: " + describe());
}

// A call of the device's driver that does not return. At rest the thread is back about once a second.
void Watchdog::look_at_pager_thread(int64_t now_ns, const Describe& describe) {
  const int64_t away_ns = now_ns - round_ns_;
  const bool late = stall_report_seconds_ > 0 && away_ns > patience_ns() + 2 * kSecondNs;
  if (!late || round_ns_ == 0 || pager_thread_said_ == round_ns_) return;
  pager_thread_said_ = round_ns_;
  say("the pager thread has not come back from a call of the device's driver for " +
      std::to_string(away_ns / kSecondNs) + " s: " + describe());
}

// What wears the drives out: more than the user's budget, or more than they are made for.
void Watchdog::look_at_writes(const WriteEconomy& writes, uint64_t elapsed_seconds) {
  char text[400];
  if (!write_budget_said_ && writes.over_budget() > 0) {
    write_budget_said_ = true;
    std::snprintf(text, sizeof text,
                  "nvme_write_budget is used up: %.2f GB were written to the NVMe tier in the last %.1f hours, the "
                  "budget is %.2f GB. Only writing more lets the program go on, so it goes over the budget; the excess "
                  "is memory_stats()[\"nvme_write_bytes.over_budget\"]. Raise host_budget or device_budget to write "
                  "less.",
                  gigabytes(writes.last_period()), static_cast<double>(writes.period_seconds()) / kSecondsAnHour,
                  gigabytes(writes.bytes_max()));
    say(text);
  }
  if (endurance_said_ || elapsed_seconds < endurance_seconds_) return;
  const double days = days_of_endurance(writes.total(), elapsed_seconds, drive_bytes_);
  if (days <= 0 || days >= kEnduranceDays) return;
  endurance_said_ = true;
  std::snprintf(text, sizeof text,
                "%.1f GB were written to the NVMe tier in %.1f hours. At this pace, day and night, a typical drive of "
                "%.0f GB reaches its rated endurance (%llu times its size) in %.0f days. Raise host_budget, set "
                "nvme_write_budget, or use a drive made for writing.",
                gigabytes(writes.total()), static_cast<double>(elapsed_seconds) / kSecondsAnHour,
                gigabytes(drive_bytes_), static_cast<unsigned long long>(kRatedOverwrites), days);
  say(text);
}

}  // namespace tierpage
