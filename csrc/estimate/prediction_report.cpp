// The predictor's hits and misses, use by use.
#include "estimate/prediction_report.h"

#include <unordered_set>
#include <utility>

#include "core/future/predictor.h"

namespace tierpage::estimate {
namespace {

class Watch {
 public:
  Watch(const UseString& string, uint64_t trace_uses_max)
      : string_(string), trace_(trace_uses_max), predictor_(trace_), feed_(string, trace_), expected_(kForesightUses) {}

  PredictionReport run() {
    result_.steps.emplace_back();
    for (const Request& request : string_.requests) {
      feed_.append(request, [this] { look(); });
      if (request.kind == RequestKind::kStepEnd) result_.steps.emplace_back();
    }
    if (result_.steps.back().uses == 0) result_.steps.pop_back();
    find_outages();
    return std::move(result_);
  }

 private:
  // After each use: did it come as predicted, and what is predicted for later?
  void look() {
    const uint64_t position = trace_.end() - 1;
    const uint64_t before = predictor_.predicted_uses();
    predictor_.catch_up();
    hits_.push_back(predictor_.predicted_uses() > before);
    const uint32_t previous = position > 0 ? trace_.at(position - 1).value : ~0u;
    new_.push_back(pairs_.insert(uint64_t{previous} << 32 | trace_.at(position).value).second);
    KeyId& expected = expected_[position % kForesightUses];
    StepForesight& step = result_.steps.back();
    ++step.uses;
    step.predicted += hits_.back();
    step.foreseen += expected == trace_.at(position);
    expected = predictor_.horizon() >= kForesightUses ? predictor_.future(kForesightUses) : KeyId::none();
  }

  void find_outages() {
    uint64_t position = 0, hits_in_a_row = 0;
    Outage outage, rest;  // up to the last miss, and what came as predicted since
    for (uint32_t number = 0; number < result_.steps.size(); ++number) {
      const double part = 1 / static_cast<double>(result_.steps[number].uses);
      for (uint64_t u = 0; u < result_.steps[number].uses; ++u, ++position) {
        const bool open = outage.uses > 0;
        if (hits_[position] && !open) continue;
        if (!open) outage.step = number;
        ++rest.uses;
        rest.steps += part;
        rest.known_steps += new_[position] ? 0 : part;
        hits_in_a_row = hits_[position] ? hits_in_a_row + 1 : 0;
        if (hits_in_a_row == 0) {
          outage.uses += rest.uses;
          outage.steps += rest.steps;
          outage.known_steps += rest.known_steps;
        }
        if (hits_in_a_row == kSettledUses) result_.outages.push_back(std::exchange(outage, {}));
        if (hits_in_a_row == 0 || hits_in_a_row == kSettledUses) rest = {};
      }
    }
    if (outage.uses > 0) result_.outages.push_back(outage);
  }

  const UseString& string_;
  Trace trace_;
  Predictor predictor_;
  TraceFeed feed_;
  std::vector<KeyId> expected_;  // what was foreseen for a position, by position modulo the distance
  std::vector<bool> hits_;       // by position
  std::vector<bool> new_;
  std::unordered_set<uint64_t> pairs_;  // keys that followed one another
  PredictionReport result_;
};

}  // namespace

PredictionReport look_ahead(const UseString& string, uint64_t trace_uses_max) {
  return Watch(string, trace_uses_max).run();
}

}  // namespace tierpage::estimate
