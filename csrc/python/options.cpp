// One table of the options that Python gives: name, field, and words where the field is an enumeration. Settings of the
// same name are checked for users in python/tierpage/settings.py; a test holds the two tables against each other.
#include "options.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <type_traits>
#include <utility>
#include <vector>

#include "csrc_python.h"

namespace py = pybind11;

namespace tierpage {
namespace {

template <class T>
struct Word {
  const char* text;
  T value;
};

constexpr Word<bool> kDevices[] = {{"cpu", false}, {"cuda", true}};
constexpr Word<bool> kScopes[] = {{"all", false}, {"explicit", true}};
constexpr Word<bool> kOverflows[] = {{"auto", true}, {"off", false}};
constexpr Word<Compress> kCompress[] = {{"auto", Compress::kAuto}, {"off", Compress::kOff}, {"on", Compress::kOn}};
constexpr Word<Tier> kTiers[] = {{"device", Tier::kDevice}, {"host", Tier::kHost}, {"nvme", Tier::kNvme}};
constexpr Word<PolicyKind> kPolicies[] = {{"auto", PolicyKind::kAuto}, {"clock", PolicyKind::kClock}};
constexpr Word<Verify> kVerify[] = {{"off", Verify::kOff}, {"read", Verify::kRead}, {"full", Verify::kFull}};
// Without kDirectToDevice, which needs a device that is RAM.
constexpr Word<StorageWay> kStorageWays[] = {{"direct", StorageWay::kDirect},
                                             {"extension", StorageWay::kExtension},
                                             {"extension_to_device", StorageWay::kExtensionToDevice}};

[[noreturn]] void refuse(const std::string& message) {
  raise_error(Status::error(StatusCode::kInvalidArgument, message));
}

template <class T, size_t N>
T value_of(const char* name, const std::string& text, const Word<T> (&words)[N]) {
  std::string known;
  for (const Word<T>& word : words) {
    if (text == word.text) return word.value;
    known += std::string(known.empty() ? "'" : ", '") + word.text + "'";
  }
  refuse(std::string(name) + " cannot be '" + text + "': it is one of " + known);
}

struct Option {
  const char* name;
  std::function<void(RuntimeOptions&, const py::handle&)> put;  // throws py::cast_error for a value of another kind
  std::vector<std::string> words;                               // empty: a value
};

template <class T>
T strictly(const py::handle& value) {
  // pybind11 takes anything that can be true or false for a bool.
  if constexpr (std::is_same_v<T, bool>) {
    if (!py::isinstance<py::bool_>(value)) throw py::cast_error();
  }
  return value.cast<T>();
}

template <class T>
Option value(const char* name, T RuntimeOptions::* field) {
  return {name, [field](RuntimeOptions& options, const py::handle& given) { options.*field = strictly<T>(given); }, {}};
}

template <class T, size_t N>
Option word(const char* name, T RuntimeOptions::* field, const Word<T> (&words)[N]) {
  std::vector<std::string> texts;
  for (const Word<T>& known : words) texts.emplace_back(known.text);
  const auto put = [name, field, &words](RuntimeOptions& options, const py::handle& given) {
    options.*field = value_of(name, given.cast<std::string>(), words);
  };
  return {name, put, texts};
}

// (bytes, seconds), or None for no such bound.
void put_write_budget(RuntimeOptions& options, const py::handle& given) {
  const auto rate = given.is_none() ? std::pair<uint64_t, uint64_t>() : given.cast<std::pair<uint64_t, uint64_t>>();
  options.nvme_write_bytes_max = rate.first;
  options.nvme_write_period_seconds = rate.second;
}

// The compiled text of a program: bytes.
void put_code_kernels(RuntimeOptions& options, const py::handle& given) {
  if (!py::isinstance<py::bytes>(given)) throw py::cast_error();
  options.code_kernels = given.cast<py::bytes>();
}

const std::vector<Option>& table() {
  using O = RuntimeOptions;
  static const std::vector<Option> options = {
      word("device", &O::cuda, kDevices),
      value("device_index", &O::device_index),
      value("device_budget", &O::device_bytes_max),
      value("host_budget", &O::host_bytes_max),
      value("nvme_budget", &O::nvme_bytes_max),
      value("nvme_path", &O::nvme_path),
      {"nvme_write_budget", &put_write_budget, {}},
      value("min_paged_bytes", &O::min_paged_bytes),
      value("granule_bytes", &O::granule_bytes),
      value("frame_bytes_max", &O::frame_bytes_max),
      value("range_bytes", &O::range_bytes),
      word("scope", &O::scope_explicit, kScopes),
      value("paranoid", &O::paranoid),
      word("policy", &O::policy, kPolicies),
      value("prefetch", &O::prefetch),
      value("staging_slot_bytes", &O::staging_slot_bytes),
      value("staging_slots", &O::staging_slots),
      value("io_workers", &O::io_workers),
      value("direct_io", &O::direct_io),
      word("storage", &O::storage, kStorageWays),
      word("verify", &O::verify, kVerify),
      value("encrypt", &O::encrypt),
      value("stall_report_seconds", &O::stall_report_seconds),
      value("trace_events_max", &O::trace_events_max),
      value("list_run_fraction", &O::list_run_fraction),
      word("overflow", &O::overflow, kOverflows),
      value("launch_guard", &O::launch_guard),
      word("compress", &O::compress, kCompress),
      {"code_kernels", &put_code_kernels, {}},
      value("code_refusal", &O::code_refusal),
  };
  return options;
}

void put(RuntimeOptions& options, const std::string& name, const py::handle& given) {
  const auto named = [&](const Option& known) { return name == known.name; };
  const auto option = std::find_if(table().begin(), table().end(), named);
  if (option == table().end()) refuse("the engine has no option '" + name + "'");
  try {
    option->put(options, given);
  } catch (const py::cast_error&) {
    refuse("the engine's option " + name + " cannot be " + py::repr(given).cast<std::string>());
  }
}

}  // namespace

Tier tier_named(const std::string& text) { return value_of("tier", text, kTiers); }
bool is_cuda(const std::string& device) { return value_of("device", device, kDevices); }

const char* name_of(Verify verify) {
  const auto is_it = [=](const Word<Verify>& word) { return word.value == verify; };
  return std::find_if(std::begin(kVerify), std::end(kVerify), is_it)->text;
}

RuntimeOptions options_of(const py::dict& given) {
  RuntimeOptions options;
  for (const auto& [key, value] : given) put(options, py::str(key), value);
  for (const Option& option : table()) {
    if (!given.contains(option.name)) refuse(std::string("the engine's option ") + option.name + " is missing");
  }
  return options;
}

py::dict option_words() {
  py::dict out;
  for (const Option& option : table()) out[option.name] = option.words;
  return out;
}

}  // namespace tierpage
