// How much was written to the NVMe tier, how much may be, and what a drive is made for. Flash wears out by writing.
//
// Time is an event: advance() is told the seconds since the start, about once a second. A window counts in slices of a
// 24th of its length and looks back over 25 of them, so it never forgets a byte that is younger than the window.
//
// Invariants (check_invariants):
//   sum of a window = sum over its slices; a period without a length counts nothing;
//   no window, nor what went over the budget, is more than the total.
#pragma once

#include <array>
#include <cstdint>

namespace tierpage {

// Bytes a drive is typically rated for, in overwrites of its whole size: consumer drives with TLC flash are sold with
// 600 TB written per TB (data sheets of Samsung 990 PRO and WD_BLACK SN850X of 1 TB, 2023); drives for servers with one
// overwrite a day over five years, which is 1825.
inline constexpr uint64_t kRatedOverwrites = 600;

class WriteEconomy {
 public:
  static constexpr uint64_t kDaySeconds = 86'400;
  static constexpr uint64_t kSparingPercent =
      80;  // of the budget, from which on writes are avoided where that is possible

  // period_seconds 0: no budget.
  void set_budget(uint64_t bytes_max, uint64_t period_seconds);
  void advance(uint64_t now_seconds);
  void wrote(uint64_t bytes);

  bool limited() const { return period_.seconds > 0; }
  bool sparing() const { return limited() && period_.sum * 100 >= bytes_max_ * kSparingPercent; }
  uint64_t bytes_max() const { return bytes_max_; }
  uint64_t period_seconds() const { return period_.seconds; }
  uint64_t total() const { return total_; }
  uint64_t last_day() const { return day_.sum; }
  uint64_t last_period() const { return period_.sum; }
  uint64_t over_budget() const { return over_budget_; }  // bytes that went down although the budget was used up
  void check_invariants() const;

 private:
  struct Window {
    static constexpr uint64_t kSlices = 24;
    uint64_t seconds = 0;
    uint64_t slice = 0;  // that runs, counted from the start
    uint64_t sum = 0;    // of all in `bytes`
    std::array<uint64_t, kSlices + 1> bytes{};
    void advance(uint64_t now_seconds);
    void add(uint64_t more);
    void check_invariants() const;
  };
  uint64_t bytes_max_ = 0;
  uint64_t total_ = 0;
  uint64_t over_budget_ = 0;
  Window day_{.seconds = kDaySeconds};
  Window period_;
};

// Days until `drive_bytes` of flash have been written kRatedOverwrites times, at the pace of `written` bytes in
// `elapsed_seconds`; 0 where nothing was written or the drive is not known.
double days_of_endurance(uint64_t written, uint64_t elapsed_seconds, uint64_t drive_bytes);

}  // namespace tierpage
