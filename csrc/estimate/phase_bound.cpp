// Stretches, and the best choice among them.
#include "estimate/phase_bound.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace tierpage::estimate {
namespace {

// What one line of the program does to one content, as far as it matters here.
struct Touch {
  uint32_t content = 0;  // an allocation; it keeps its number over a recurrence, and another one has another
  uint64_t bytes = 0;
  bool reads = false;  // what was there before is needed
  bool writes = false;
  bool last = false;  // nothing uses it afterwards
};

struct Line {
  double microseconds = 0;
  std::vector<Touch> touches;
};

// The loop three times over: a stretch may cross a border, and needs to know what comes after it.
constexpr int kLaps = 3;

std::vector<Line> unrolled(const Program& program) {
  std::vector<Line> lines;
  std::vector<uint32_t> content(program.id_count);
  std::vector<uint64_t> bytes(program.id_count);
  std::unordered_map<uint32_t, std::pair<size_t, size_t>> latest;  // by content: its last touch so far
  uint32_t next = 0;
  const auto run = [&](const ProgramLine& source) {
    Line line{source.kind == LineKind::kOperator ? source.microseconds : 0, {}};
    for (const ProgramUse& use : source.uses)
      line.touches.push_back({content[use.id], bytes[use.id], true, use.write, false});
    for (const ProgramAllocation& fresh : source.fresh) {
      content[fresh.id] = next++;
      bytes[fresh.id] = fresh.bytes;
      line.touches.push_back({content[fresh.id], fresh.bytes, false, true, false});
    }
    if (source.kind == LineKind::kFree) {
      const auto found = latest.find(content[source.freed]);
      if (found != latest.end()) lines[found->second.first].touches[found->second.second].last = true;
    }
    for (size_t i = 0; i < line.touches.size(); ++i) latest[line.touches[i].content] = {lines.size(), i};
    lines.push_back(std::move(line));
  };
  for (size_t i = 0; i < program.loop_begin; ++i) run(program.lines[i]);
  const size_t before = lines.size();
  for (int lap = 0; lap < kLaps; ++lap) {
    for (size_t i = program.loop_begin; i < program.lines.size(); ++i) run(program.lines[i]);
  }
  lines.erase(lines.begin(), lines.begin() + static_cast<std::ptrdiff_t>(before));
  return lines;
}

// Grows a stretch line by line.
class Stretch {
 public:
  void add(const Line& line) {
    microseconds_ += line.microseconds;
    for (const Touch& touch : line.touches) {
      if (touch.reads && known_.insert(touch.content).second) needed_ += touch.bytes;
      known_.insert(touch.content);
      if (touch.writes && made_.insert(touch.content).second) left_ += touch.bytes;
      if (touch.last && made_.contains(touch.content)) left_ -= touch.bytes;
    }
  }
  // What it takes beyond its kernels, in microseconds.
  double excess(uint64_t capacity_bytes, double up_rate, double down_rate) const {
    const double capacity = static_cast<double>(capacity_bytes);
    const double up = std::max(static_cast<double>(needed_) - capacity, 0.0) / up_rate * 1e6;
    const double down = std::max(static_cast<double>(left_) - capacity, 0.0) / down_rate * 1e6;
    return std::max(std::max(up, down) - microseconds_, 0.0);
  }

 private:
  double microseconds_ = 0;
  uint64_t needed_ = 0;  // used, and made before it
  uint64_t left_ = 0;    // made in it, and used after it
  std::unordered_set<uint32_t> known_, made_;
};

}  // namespace

PhaseBound bound_by_phases(const Program& program, uint64_t capacity_bytes, double up_rate, double down_rate,
                           int cuts) {
  const std::vector<Line> lines = unrolled(program);
  const size_t lap = lines.size() / kLaps;
  if (lap == 0) return {};
  const size_t count = std::min(static_cast<size_t>(std::max(cuts, 1)), lap);
  const auto place = [&](size_t cut) { return cut * lap / count; };  // cuts 0 .. 2 * count, through two laps
  // excess[i][k]: of the stretch from cut i over k pieces, at most a recurrence.
  std::vector<std::vector<double>> excess(count, std::vector<double>(count + 1));
  for (size_t first = 0; first < count; ++first) {
    Stretch stretch;
    for (size_t pieces = 1; pieces <= count; ++pieces) {
      for (size_t i = place(first + pieces - 1); i < place(first + pieces); ++i) stretch.add(lines[i]);
      excess[first][pieces] = stretch.excess(capacity_bytes, up_rate, down_rate);
    }
  }
  // From any cut once around: the most that stretches side by side add up to.
  double most = 0;
  for (size_t origin = 0; origin < count; ++origin) {
    std::vector<double> best(count + 1);
    for (size_t end = 1; end <= count; ++end) {
      for (size_t begin = 0; begin < end; ++begin) {
        best[end] = std::max(best[end], best[begin] + excess[(origin + begin) % count][end - begin]);
      }
    }
    most = std::max(most, best[count]);
  }
  PhaseBound bound;
  bound.compute_seconds = program.compute_microseconds(program.loop_begin, program.lines.size()) / 1e6;
  bound.seconds = bound.compute_seconds + most / 1e6;
  return bound;
}

}  // namespace tierpage::estimate
