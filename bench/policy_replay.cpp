// What a recorded program moves under the production core, and what it would under other policies and with perfect
// knowledge.
//
//   policy_replay PROGRAM --device 16 [--host 1000] [--loops 8] [--repeat-last STEPS] [--tail STEPS] [--json]
//
// Sizes in GiB. PROGRAM: a file made by bench/record_program.py. --repeat-last: its last steps are what repeats, for
// programs that were recorded without a loop. Bytes and faults are of one recurrence in the steady state: the mean of
// the second half of the loops but for the last one, whose future perfect knowledge would lack; without a loop, of a
// step of the second half but for the last --tail steps (default 4). --smoke runs a small built-in program.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "estimate/machine.h"
#include "estimate/page_replay.h"
#include "estimate/prediction_report.h"

using namespace tierpage;
using namespace tierpage::estimate;

namespace {

struct Row {
  std::string policy;
  double fetched_bytes = 0;  // all of a recurrence
  double written_bytes = 0;
  double faults = 0;
  double seconds = 0;  // of the modelled machine; 0: no clock
  double total() const { return fetched_bytes + written_bytes; }
};

// The steps that count, and how many recurrences they are.
struct Window {
  uint32_t first = 0;
  uint32_t last = 0;
  double recurrences = 1;
};

struct Arguments {
  ReplayOptions replay;
  std::string path;
  size_t repeat_last = 0;
  uint32_t tail = 4;
  bool json = false;
};

// A training step in small: weights are read forwards and backwards, and rewritten at the end.
std::string smoke_program() {
  constexpr int kLayers = 8;
  std::ostringstream text;
  text << "tierpage-program 1\n";
  for (int i = 0; i < kLayers; ++i) text << "A " << i << " 8388608\n";
  text << "S\nL\n";
  for (int i = 0; i < kLayers; ++i) text << "O forward 500 " << i << "r\n";
  for (int i = kLayers; i-- > 0;) text << "O backward 500 " << i << "r +" << kLayers + i << ":8388608\n";
  for (int i = 0; i < kLayers; ++i) text << "O step 500 " << i << "w " << kLayers + i << "r\nF " << kLayers + i << "\n";
  text << "S\n";
  return text.str();
}

Window window_of(const Program& program, const Arguments& arguments, uint32_t step_count) {
  uint32_t per_loop = 0;
  for (size_t i = program.loop_begin; i < program.lines.size(); ++i)
    per_loop += program.lines[i].kind == LineKind::kSynchronize;
  if (per_loop == 0) {
    const uint32_t last = step_count > 2 * arguments.tail ? step_count - arguments.tail : step_count;
    return {step_count / 2, last, static_cast<double>(last - step_count / 2)};
  }
  const auto loops = static_cast<uint32_t>(arguments.replay.loops);
  const uint32_t warm_up = step_count - loops * per_loop;
  return {warm_up + loops / 2 * per_loop, step_count - per_loop, static_cast<double>(loops - 1 - loops / 2)};
}

Row mean(std::string name, const std::vector<Moved>& steps, const Window& window) {
  Moved sum;
  for (uint32_t i = window.first; i < window.last; ++i) sum += steps[i];
  return {std::move(name), static_cast<double>(sum.fetched_bytes) / window.recurrences,
          static_cast<double>(sum.written_bytes) / window.recurrences,
          static_cast<double>(sum.faults) / window.recurrences};
}

Status run_core(const Program& program, ReplayOptions options, PolicyKind policy, const Window& window, Row* row) {
  options.pager.policy = policy;
  std::vector<StepReport> reports;
  if (Status status = replay(program, options, &reports); !status.ok()) return status;
  std::vector<Moved> steps;
  double seconds = 0;
  for (uint32_t i = 0; i < reports.size(); ++i) {
    const StepReport& report = reports[i];
    steps.push_back({report.to_device_bytes + report.disk_read_bytes, report.to_host_bytes + report.disk_write_bytes,
                     report.faults});
    if (i >= window.first && i < window.last) seconds += report.seconds;
  }
  *row = mean(policy == PolicyKind::kClock ? "clock" : "min, predicted", steps, window);
  row->seconds = seconds / window.recurrences;
  return Status::success();
}

Status run_pages(const UseString& string, const PageReplayOptions& options, const char* name, const Window& window,
                 Row* row) {
  std::vector<Moved> steps;
  if (Status status = replay_pages(string, options, &steps); !status.ok()) return status;
  *row = mean(name, steps, window);
  return Status::success();
}

// Rows of everything that is compared; the two of the core first. `best` is the one that perfect knowledge is judged
// by.
Status run_all(const Program& program, const Arguments& arguments, const UseString& string, const Window& window,
               std::vector<Row>* rows, size_t* best) {
  const PagerConfig& pager = arguments.replay.pager;
  rows->resize(7);
  Status status = run_core(program, arguments.replay, PolicyKind::kClock, window, &(*rows)[0]);
  if (status.ok()) status = run_core(program, arguments.replay, PolicyKind::kAuto, window, &(*rows)[1]);
  PageReplayOptions pages{pager.frame_bytes_max, pager.device_bytes_max, Victims::kLeastRecent, false};
  if (status.ok()) status = run_pages(string, pages, "lru", window, &(*rows)[2]);
  pages.victims = Victims::kFarthest;
  if (status.ok()) status = run_pages(string, pages, "oracle, farthest", window, &(*rows)[3]);
  pages.victims = Victims::kFarthestByCost;
  if (status.ok()) status = run_pages(string, pages, "oracle, by cost", window, &(*rows)[4]);
  pages.drop_dead = true;
  if (status.ok()) status = run_pages(string, pages, "oracle, dead dropped", window, &(*rows)[5]);
  pages = {pager.granule_bytes, pager.device_bytes_max, Victims::kFarthest, false};
  if (status.ok()) status = run_pages(string, pages, "least fetches", window, &(*rows)[6]);
  if (!status.ok()) return status;
  *best = (*rows)[3].total() < (*rows)[4].total() ? 3 : 4;
  if (program.loop_begin < program.lines.size()) {
    const Moved plan =
        interval_plan(string, pager.device_bytes_max, window.first,
                      window.first + static_cast<uint32_t>((window.last - window.first) / window.recurrences));
    rows->push_back({"oracle, plan", static_cast<double>(plan.fetched_bytes), static_cast<double>(plan.written_bytes)});
    if (rows->back().total() < (*rows)[*best].total()) *best = rows->size() - 1;
  }
  return status;
}

// What the core's predictor saw: shares of the window's uses, outages of the whole run.
struct Lookout {
  double predicted = 0;
  double foreseen = 0;
  size_t outages = 0;
  double outage_steps_max = 0;
  double recovery_steps_max = 0;  // without what was new
};

Lookout look_out(const UseString& string, const Window& window, uint64_t trace_uses_max) {
  const PredictionReport report = look_ahead(string, trace_uses_max);
  Lookout lookout;
  double uses = 0;
  for (uint32_t i = window.first; i < window.last; ++i) {
    uses += static_cast<double>(report.steps[i].uses);
    lookout.predicted += static_cast<double>(report.steps[i].predicted);
    lookout.foreseen += static_cast<double>(report.steps[i].foreseen);
  }
  lookout.predicted /= std::max(uses, 1.0);
  lookout.foreseen /= std::max(uses, 1.0);
  lookout.outages = report.outages.size();
  for (const Outage& outage : report.outages) {
    lookout.outage_steps_max = std::max(lookout.outage_steps_max, outage.steps);
    lookout.recovery_steps_max = std::max(lookout.recovery_steps_max, outage.known_steps);
  }
  return lookout;
}

void print(const std::vector<Row>& rows, size_t best, const Lookout& lookout) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    const double base = rows[best].total();
    std::printf("%-22s fetched %9.3f GB  written %9.3f GB  faults %8.1f  bytes / oracle %6.3f", row.policy.c_str(),
                row.fetched_bytes / 1e9, row.written_bytes / 1e9, row.faults, base > 0 ? row.total() / base : 1.0);
    if (row.seconds > 0) std::printf("  %8.4f s", row.seconds);
    if (i == 1) {
      std::printf(
          "  predicted %.1f %%, %llu uses ahead %.1f %%, outages %zu, longest %.3f steps, without what was new %.3f",
          100 * lookout.predicted, static_cast<unsigned long long>(kForesightUses), 100 * lookout.foreseen,
          lookout.outages, lookout.outage_steps_max, lookout.recovery_steps_max);
    }
    std::printf("%s\n", i == best ? "  (the oracle)" : "");
  }
}

void print_json(const std::vector<Row>& rows, size_t best, const Lookout& lookout) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    const double base = rows[best].total();
    std::printf(
        "{\"policy\": \"%s\", \"fetched_bytes\": %.0f, \"written_bytes\": %.0f, \"faults\": %.1f, "
        "\"bytes_ratio\": %.4f, \"is_oracle\": %s",
        row.policy.c_str(), row.fetched_bytes, row.written_bytes, row.faults, base > 0 ? row.total() / base : 1.0,
        i == best ? "true" : "false");
    if (row.seconds > 0) std::printf(", \"seconds\": %.6f", row.seconds);
    if (i == 1) {
      std::printf(
          ", \"predicted_share\": %.5f, \"foreseen_share\": %.5f, \"outages\": %zu, "
          "\"outage_steps_max\": %.4f, \"recovery_steps_max\": %.4f",
          lookout.predicted, lookout.foreseen, lookout.outages, lookout.outage_steps_max, lookout.recovery_steps_max);
    }
    std::printf("}\n");
  }
}

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  PagerConfig& pager = arguments.replay.pager;
  pager.device_bytes_max = 40 * kMiB;
  pager.host_bytes_max = 1000 * kGiB;
  pager.range_bytes = 4096 * kGiB;
  pager.span_bytes_min = 256 * kKiB;
  arguments.replay.loops = 8;
  const auto gib = [](const char* text) { return static_cast<uint64_t>(std::atof(text) * static_cast<double>(kGiB)); };
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "0";
    if (word == "--smoke") continue;
    if (word == "--json") arguments.json = true;
    else if (word == "--device") pager.device_bytes_max = gib(value), ++i;
    else if (word == "--host") pager.host_bytes_max = gib(value), ++i;
    else if (word == "--prefetch-bytes") pager.prefetch_bytes_max = gib(value), ++i;
    else if (word == "--page-mib") pager.frame_bytes_max = static_cast<uint64_t>(std::atoi(value)) * kMiB, ++i;
    else if (word == "--loops") arguments.replay.loops = std::max(4, std::atoi(value)), ++i;
    else if (word == "--repeat-last") arguments.repeat_last = static_cast<size_t>(std::atoi(value)), ++i;
    else if (word == "--tail") arguments.tail = static_cast<uint32_t>(std::atoi(value)), ++i;
    else arguments.path = word;
  }
  return arguments;
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments = parse(argc, argv);
  Program program;
  Status status;
  if (arguments.path.empty()) {
    std::istringstream text(smoke_program());
    status = read_program(text, &program);
  } else {
    std::ifstream text(arguments.path);
    status = read_program(text, &program);
  }
  if (status.ok() && arguments.repeat_last > 0) status = repeat_last_steps(&program, arguments.repeat_last);
  std::vector<Row> rows;
  size_t best = 0;
  if (status.ok()) {
    const UseString string = write_out(program, arguments.replay);
    const Window window = window_of(program, arguments, string.step_count);
    status = run_all(program, arguments, string, window, &rows, &best);
    if (status.ok()) {
      const Lookout lookout = look_out(string, window, arguments.replay.pager.trace_uses_max);
      (arguments.json ? print_json : print)(rows, best, lookout);
    }
  }
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message.c_str());
    return 1;
  }
  return 0;
}
