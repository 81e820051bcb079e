// What the user is told of a running pager without asking: transfers that hang, operators that wait for nothing, a
// driver that does not return, drives that are worn out. Everything once; Python pulls the lines and logs them.
//
// Nobody is given up: a disk may come back.
// Times are given by the owner (one clock that never goes back); not thread safe: under the runtime's mutex.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "core/pager/write_economy.h"
#include "engine/transfer_engine.h"

namespace tierpage {

class Watchdog {
 public:
  using Describe = std::function<std::string()>;  // of queues and tiers: asked only for a line that will be said

  // stall_report_seconds: how long something may hang before it is reported, 0: nothing is; endurance_seconds: from
  // when on a program's pace of writing is judged.
  Watchdog(double stall_report_seconds, uint64_t endurance_seconds)
      : stall_report_seconds_(stall_report_seconds), endurance_seconds_(endurance_seconds) {}
  void set_drive_bytes(uint64_t bytes) { drive_bytes_ = bytes; }

  void something_ended(int64_t now_ns) {
    last_progress_ns_ = now_ns;
    waits_said_ = false;
  }
  void wait_begins(int64_t now_ns) { last_progress_ns_ = now_ns; }
  void pager_thread_is_back(int64_t now_ns) { round_ns_ = now_ns; }

  // Once a second. patience_ns() is for TransferEngine::stuck; 0: there is nothing to look for.
  int64_t patience_ns() const { return static_cast<int64_t>(stall_report_seconds_ * 1e9); }
  void look_at_progress(StuckTransfers stuck, bool operator_waits, int64_t now_ns, const Describe& describe);
  void look_at_writes(const WriteEconomy& writes, uint64_t elapsed_seconds);
  // By whoever asks for notices, since the thread that would report hangs itself.
  void look_at_pager_thread(int64_t now_ns, const Describe& describe);

  const StuckTransfers& stuck() const { return stuck_; }  // as of the last look
  void say(const std::string& text) { notices_ += text + "\n"; }
  std::string take_notices() { return std::exchange(notices_, {}); }  // lines, oldest first

 private:
  double stall_report_seconds_;
  uint64_t endurance_seconds_;
  uint64_t drive_bytes_ = 0;  // of the NVMe tier's drives, 0: not known
  int64_t last_progress_ns_ = 0;
  int64_t round_ns_ = 0;  // when the pager thread was back last; 0: it has not begun
  StuckTransfers stuck_;
  std::string notices_;
  // What was said already:
  TransferId stuck_said_;          // the oldest of the transfers that hang
  bool waits_said_ = false;        // of the wait that goes on
  int64_t pager_thread_said_ = 0;  // the round that it had not come back from
  bool write_budget_said_ = false;
  bool endurance_said_ = false;
};

}  // namespace tierpage
