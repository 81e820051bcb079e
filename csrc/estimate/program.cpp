// Reads recorded programs; they are files from outside, so everything is checked.
#include "estimate/program.h"

#include <sstream>
#include <unordered_map>

namespace tierpage::estimate {
namespace {

constexpr uint64_t kBytesMax = uint64_t{1} << 44;
constexpr uint32_t kIdMax = 1u << 24;

class Reader {
 public:
  explicit Reader(Program& program) : program_(program) {}

  Status read(std::istream& text) {
    std::string line;
    if (!std::getline(text, line) || line != "tierpage-program 1")
      return error("the first line is not \"tierpage-program 1\"");
    program_.loop_begin = ~size_t{0};
    while (std::getline(text, line)) {
      ++number_;
      if (line.empty() || line[0] == '#') continue;
      if (Status status = read_line(line); !status.ok()) return status;
    }
    if (program_.loop_begin == ~size_t{0}) program_.loop_begin = program_.lines.size();
    else if (live_count_ != live_at_loop_) return error("the loop does not free what it allocates");
    program_.id_count = static_cast<uint32_t>(live_.size());
    return Status::success();
  }

 private:
  Status error(const std::string& what) const {
    return Status::error(StatusCode::kInvalidArgument, "program, line " + std::to_string(number_) + ": " + what);
  }

  Status read_line(const std::string& line) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "S") {
      program_.lines.push_back({});
      return Status::success();
    }
    if (kind == "L") {
      program_.loop_begin = program_.lines.size();
      live_at_loop_ = live_count_;
      return Status::success();
    }
    if (kind == "A" || kind == "F") return read_memory(words, kind == "A");
    if (kind == "O" || kind == "O*") return read_operator(words, kind == "O*");
    return error("unknown record \"" + kind.substr(0, 20) + "\"");
  }

  Status read_memory(std::istringstream& words, bool allocate) {
    uint64_t id = 0, bytes = 1;
    words >> id;
    if (allocate) words >> bytes;
    if (words.fail()) return error("numbers expected");
    ProgramLine line;
    line.kind = allocate ? LineKind::kAllocate : LineKind::kFree;
    line.freed = static_cast<uint32_t>(id);
    if (allocate) line.fresh.push_back({static_cast<uint32_t>(id), bytes});
    program_.lines.push_back(std::move(line));
    return allocate ? begin_life(id, bytes) : end_life(id);
  }

  Status begin_life(uint64_t id, uint64_t bytes) {
    if (id > kIdMax || bytes == 0 || bytes > kBytesMax) return error("id or size out of range");
    if (id >= live_.size()) live_.resize(id + 1, false);
    if (live_[id]) return error("id " + std::to_string(id) + " is in use");
    live_[id] = true;
    ++live_count_;
    return Status::success();
  }

  Status end_life(uint64_t id) {
    if (id >= live_.size() || !live_[id]) return error("id " + std::to_string(id) + " is not in use");
    live_[id] = false;
    --live_count_;
    return Status::success();
  }

  Status read_operator(std::istringstream& words, bool over_lists) {
    ProgramLine line;
    line.kind = LineKind::kOperator;
    std::string name, word;
    words >> name >> line.microseconds;
    if (words.fail() || !(line.microseconds >= 0) || line.microseconds > 1e9)
      return error("name and microseconds expected");
    line.name = names_.try_emplace(name, static_cast<uint32_t>(program_.names.size())).first->second;
    if (line.name == program_.names.size()) program_.names.push_back(name);
    while (words >> word) {
      if (Status status = read_use(word, line); !status.ok()) return status;
    }
    if (over_lists) line.group_ends.push_back(static_cast<uint32_t>(line.uses.size()));
    program_.lines.push_back(std::move(line));
    return Status::success();
  }

  Status read_use(const std::string& word, ProgramLine& line) {
    if (word == ";") {
      line.group_ends.push_back(static_cast<uint32_t>(line.uses.size()));
      return Status::success();
    }
    std::istringstream number(word);
    uint64_t id = 0, bytes = 0;
    char mark = 0;
    if (word[0] == '+') {
      number >> mark >> id >> mark >> bytes;
      if (number.fail() || mark != ':') return error("\"" + word.substr(0, 20) + "\" is not +id:bytes");
      line.fresh.push_back({static_cast<uint32_t>(id), bytes});
      return begin_life(id, bytes);
    }
    number >> id >> mark;
    if (number.fail() || (mark != 'r' && mark != 'w')) return error("\"" + word.substr(0, 20) + "\" is no use");
    if (id >= live_.size() || !live_[id]) return error("id " + std::to_string(id) + " is not in use");
    line.uses.push_back({static_cast<uint32_t>(id), mark == 'w'});
    return Status::success();
  }

  Program& program_;
  size_t number_ = 1;
  std::vector<bool> live_;
  size_t live_count_ = 0;
  size_t live_at_loop_ = 0;
  std::unordered_map<std::string, uint32_t> names_;
};

}  // namespace

double Program::compute_microseconds(size_t begin, size_t end) const {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += lines[i].microseconds;
  return sum;
}

Status read_program(std::istream& text, Program* program) {
  *program = Program{};
  return Reader(*program).read(text);
}

}  // namespace tierpage::estimate
