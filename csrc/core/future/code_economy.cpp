#include "core/future/code_economy.h"

#include <algorithm>

#include "core/model/status.h"

namespace tierpage {
namespace {

// Between two limits what was decided stays.
constexpr double kIdleToBegin = 0.03;  // of a window, in which the device does not work
constexpr double kIdleToStop = 0.01;
constexpr double kBusyToBegin = 0.95;  // of a window, that a link would be busy with uncoded pages
constexpr double kBusyToStop = 0.85;
constexpr double kGainToBegin = 0.95;  // time of a coded byte by that of an uncoded one, at most
constexpr double kGainToStop = 1.0;
constexpr double kBusyMin = 0.25;  // of a window: a link that is used less is not what the program waits for

double share(uint64_t part, double whole) { return whole > 0 ? static_cast<double>(part) / whole : 0; }

// What the link would have been busy for if nothing had been coded.
double plain_ns(const CodeTraffic::Way& now, const CodeTraffic::Way& before) {
  const uint64_t bytes = now.bytes - before.bytes, content = now.content_bytes - before.content_bytes;
  return bytes == 0 ? 0
                    : static_cast<double>(now.busy_ns - before.busy_ns) * share(content, static_cast<double>(bytes));
}

}  // namespace

void CodeEconomy::measured(const CodeTraffic& traffic, uint64_t uses, uint64_t period, double compute_ns) {
  if (begun_ && period > 0 && uses < window_uses_ + period) return;
  const double laps = period == 0 ? 0 : static_cast<double>(uses - window_uses_) / static_cast<double>(period);
  if (begun_ && laps > 0 && compute_ns > 0 && traffic.now_ns > window_.now_ns) {
    const bool coder_worked = traffic.encode.content_bytes > window_.encode.content_bytes;
    learn(down_, traffic.down, window_.down, traffic.encode, window_.encode);
    learn(up_, traffic.up, window_.up, traffic.decode, window_.decode);
    unmeasured_ = coder_worked ? 0 : unmeasured_ + 1;
    if (unmeasured_ > kRemembered) down_.coder = up_.coder = 0;  // it may be otherwise by now: tried again
    const bool worth = link_bound(traffic, compute_ns * laps) && cheaper();
    if (codes_) {
      refusals_ = worth ? 0 : refusals_ + 1;
      if (refusals_ == patience_) {
        codes_ = false;
        refusals_ = 0;
      }
    } else if (worth) {
      codes_ = true;
      patience_ = std::min(2 * patience_, kPatienceMax);
    }
  }
  begun_ = true;
  window_ = traffic;
  window_uses_ = uses;
}

bool CodeEconomy::link_bound(const CodeTraffic& traffic, double compute_ns) const {
  const auto elapsed = static_cast<double>(traffic.now_ns - window_.now_ns);
  const double busiest = std::max(plain_ns(traffic.up, window_.up), plain_ns(traffic.down, window_.down)) / elapsed;
  if (busiest < kBusyMin) return false;
  const double idle = 1 - compute_ns / elapsed;
  return idle >= (codes_ ? kIdleToStop : kIdleToBegin) || busiest >= (codes_ ? kBusyToStop : kBusyToBegin);
}

bool CodeEconomy::cheaper() const {
  if (down_.coder == 0) return true;  // nothing is known of it: that is found out by coding
  const double plain = down_.plain() + up_.plain(), coded = down_.coded() + up_.coded();
  return coded < plain * (codes_ ? kGainToStop : kGainToBegin);
}

void CodeEconomy::learn(PerByte& known, const CodeTraffic::Way& now, const CodeTraffic::Way& before,
                        const CodeTraffic::Coder& coder, const CodeTraffic::Coder& coder_before) {
  if (now.bytes > before.bytes) {
    known.link = static_cast<double>(now.busy_ns - before.busy_ns) / static_cast<double>(now.bytes - before.bytes);
  }
  if (coder.content_bytes == coder_before.content_bytes) return;
  const auto content = static_cast<double>(coder.content_bytes - coder_before.content_bytes);
  known.coder = static_cast<double>(coder.busy_ns - coder_before.busy_ns) / content;
  known.ratio = static_cast<double>(coder.coded_bytes - coder_before.coded_bytes) / content;
}

void CodeEconomy::check_invariants() const {
  TP_ASSERT(refusals_ < patience_ && patience_ >= kPatience && patience_ <= kPatienceMax);
}

}  // namespace tierpage
