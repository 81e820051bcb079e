// Windows over what was written.
#include "core/pager/write_economy.h"

#include <algorithm>
#include <numeric>

#include "core/model/status.h"

namespace tierpage {

void WriteEconomy::Window::advance(uint64_t now_seconds) {
  if (seconds == 0) return;
  const uint64_t now = now_seconds * kSlices / seconds;
  for (uint64_t passed = std::min(now > slice ? now - slice : 0, bytes.size()); passed > 0; --passed) {
    uint64_t& oldest = bytes[(now - passed + 1) % bytes.size()];
    sum -= oldest;
    oldest = 0;
  }
  slice = std::max(slice, now);
}

void WriteEconomy::Window::add(uint64_t more) {
  bytes[slice % bytes.size()] += more;
  sum += more;
}

void WriteEconomy::set_budget(uint64_t bytes_max, uint64_t period_seconds) {
  bytes_max_ = bytes_max;
  period_ = Window{.seconds = period_seconds};
}

void WriteEconomy::advance(uint64_t now_seconds) {
  day_.advance(now_seconds);
  period_.advance(now_seconds);
}

void WriteEconomy::wrote(uint64_t bytes) {
  total_ += bytes;
  day_.add(bytes);
  if (!limited()) return;
  period_.add(bytes);
  if (period_.sum > bytes_max_) over_budget_ += std::min(bytes, period_.sum - bytes_max_);
}

void WriteEconomy::Window::check_invariants() const {
  TP_ASSERT(sum == std::accumulate(bytes.begin(), bytes.end(), uint64_t{0}));
  TP_ASSERT(seconds > 0 || sum == 0);
}

void WriteEconomy::check_invariants() const {
  day_.check_invariants();
  period_.check_invariants();
  TP_ASSERT(day_.sum <= total_ && period_.sum <= total_ && over_budget_ <= total_);
}

double days_of_endurance(uint64_t written, uint64_t elapsed_seconds, uint64_t drive_bytes) {
  if (written == 0 || elapsed_seconds == 0) return 0;
  const double rated = static_cast<double>(drive_bytes) * static_cast<double>(kRatedOverwrites);
  const double a_day = static_cast<double>(written) / static_cast<double>(elapsed_seconds) * WriteEconomy::kDaySeconds;
  return rated / a_day;
}

}  // namespace tierpage
