// Writing a program out, and feeding it to a trace.
#include "estimate/use_string.h"

#include <map>
#include <utility>

namespace tierpage::estimate {
namespace {

class Writer {
 public:
  Writer(const Program& program, const ReplayOptions& options)
      : program_(program), granule_bytes_(options.pager.granule_bytes), life_of_(program.id_count) {
    run_bytes_max_ = options.list_run_bytes_max != 0 ? options.list_run_bytes_max : options.pager.device_bytes_max / 2;
  }

  UseString run(int loops) {
    for (size_t i = 0; i < program_.loop_begin; ++i) write_line(program_.lines[i]);
    for (int loop = 0; loop < loops && program_.loop_begin < program_.lines.size(); ++loop) {
      for (size_t i = program_.loop_begin; i < program_.lines.size(); ++i) write_line(program_.lines[i]);
    }
    link_uses();
    return std::move(string_);
  }

 private:
  void write_line(const ProgramLine& line) {
    switch (line.kind) {
      case LineKind::kAllocate:
        write_fresh(line.fresh[0]);
        close(RequestKind::kAllocate, 0);
        break;
      case LineKind::kFree: {
        const uint32_t life = life_of_[line.freed];
        string_.lives[life].freed = static_cast<uint32_t>(string_.requests.size());
        close(RequestKind::kFree, 0);
        string_.requests.back().life = life;
        break;
      }
      case LineKind::kOperator: write_operator(line); break;
      case LineKind::kSynchronize:
        close(RequestKind::kStepEnd, 0);
        ++string_.step_count;
        break;
    }
  }

  // Split into runs as the modelled machine does it.
  void write_operator(const ProgramLine& line) {
    size_t first = 0, begin = 0;
    uint64_t run = 0;
    for (size_t group = 0; line.group_ends.size() > 1 && group < line.group_ends.size(); ++group) {
      uint64_t bytes = 0;
      for (size_t i = begin; i < line.group_ends[group]; ++i) bytes += string_.lives[life_of_[line.uses[i].id]].bytes;
      if (run > 0 && run + bytes > run_bytes_max_) {
        write_uses(line, first, begin);
        close(RequestKind::kOperator, line.name);
        first = begin;
        run = 0;
      }
      run += bytes;
      begin = line.group_ends[group];
    }
    write_uses(line, first, line.uses.size());
    for (const ProgramAllocation& fresh : line.fresh) write_fresh(fresh);
    close(RequestKind::kOperator, line.name);
  }

  void write_uses(const ProgramLine& line, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) string_.uses.push_back({life_of_[line.uses[i].id], line.uses[i].write});
  }

  void write_fresh(const ProgramAllocation& allocation) {
    const uint32_t life = static_cast<uint32_t>(string_.lives.size());
    string_.lives.push_back({round_up(allocation.bytes, granule_bytes_)});
    life_of_[allocation.id] = life;
    string_.uses.push_back({life, true, true});
  }

  void close(RequestKind kind, uint32_t name) {
    const uint32_t end = static_cast<uint32_t>(string_.uses.size());
    string_.requests.push_back({kind, name, closed_, end});
    closed_ = end;
  }

  void link_uses() {
    std::vector<uint32_t> next(string_.lives.size(), kNoRequest);
    for (uint32_t i = static_cast<uint32_t>(string_.requests.size()); i-- > 0;) {
      const Request& request = string_.requests[i];
      for (uint32_t u = request.begin; u < request.end; ++u) string_.uses[u].next = next[string_.uses[u].life];
      for (uint32_t u = request.begin; u < request.end; ++u) next[string_.uses[u].life] = i;
    }
  }

  const Program& program_;
  uint64_t granule_bytes_;
  uint64_t run_bytes_max_ = 0;
  std::vector<uint32_t> life_of_;  // by the program's id
  uint32_t closed_ = 0;            // uses that belong to a request
  UseString string_;
};

}  // namespace

UseString write_out(const Program& program, const ReplayOptions& options) {
  return Writer(program, options).run(options.loops);
}

Status repeat_last_steps(Program* program, size_t steps) {
  const auto error = [](const char* what) { return Status::error(StatusCode::kInvalidArgument, what); };
  if (program->loop_begin != program->lines.size()) return error("the program has a loop already");
  if (program->lines.empty() || program->lines.back().kind != LineKind::kSynchronize)
    return error("the program does not end with a step");
  size_t begin = program->lines.size(), ends = 0;
  while (begin > 0 && ends <= steps) ends += program->lines[--begin].kind == LineKind::kSynchronize;
  if (ends <= steps) return error("the program has too few steps");
  ++begin;
  std::map<uint32_t, uint64_t> live, found;  // bytes by id
  for (size_t i = 0; i < program->lines.size(); ++i) {
    if (i == begin) found = live;
    const ProgramLine& line = program->lines[i];
    for (const ProgramAllocation& fresh : line.fresh) live[fresh.id] = fresh.bytes;
    if (line.kind == LineKind::kFree) live.erase(line.freed);
  }
  if (live != found) return error("the last steps do not leave alive what they found");
  program->loop_begin = begin;
  return Status::success();
}

// Only what an operator uses opens it; what it allocates inside belongs to it.
bool TraceFeed::begin(const Request& request) {
  if (request.kind == RequestKind::kFree) trace_.close_key(keys_[request.life]);
  const bool uses_any = request.begin < request.end && !string_.uses[request.begin].fresh;
  if (uses_any) trace_.note_operator((request.name + 1) * 0x9e3779b97f4a7c15ull);
  return uses_any || request.kind == RequestKind::kAllocate;
}

void TraceFeed::append_use(const RegionUse& use, bool opens) {
  if (use.fresh) keys_[use.life] = trace_.open_key(string_.lives[use.life].bytes, RegionId(use.life));
  trace_.append(keys_[use.life], use.write, opens);
}

}  // namespace tierpage::estimate
