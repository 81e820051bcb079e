// The common ground of the torch tests: see torch_test.h.
#include "torch_test.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <map>
#include <sstream>

namespace tierpage {
namespace {

std::map<std::string, std::optional<OperatorInfo>>& descriptions() {
  static std::map<std::string, std::optional<OperatorInfo>> all;
  return all;
}

// Before the first engine is attached: an operator with an interceptor counts as one that somebody else owns.
class Descriptions final : public ::testing::Environment {
 public:
  void SetUp() override {
    at::set_num_threads(1);  // threads of a library that no sanitizer knows would only confuse them
    auto& dispatcher = c10::Dispatcher::singleton();
    for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
      const auto op = dispatcher.findOp(name);
      if (op.has_value()) descriptions().emplace(c10::toString(name), describe_operator(*op));
    }
    ASSERT_EQ(tierpage_torch_install(), TP_OK) << tierpage_torch_last_error();
  }
};
::testing::Environment* const environment = ::testing::AddGlobalTestEnvironment(new Descriptions);

void plain_settings() {
  fake_set_run_bytes_max(~0ull);
  fake_set_budget(~0ull);
  fake_set_total(~0ull);
  fake_set_defers(0);
  fake_set_refuses(0);
  fake_set_wait_slices(0);
  tierpage_torch_set_option("typed", 1);
  tierpage_torch_set_option("deferral", 1);
  tierpage_torch_set_option("materializer", 1);  // fails where this torch has none, which then is as it should be
}

}  // namespace

const tp_engine_api* engine_for_tests() {
  static const tp_engine_api* const engine = fake_engine(kMinPagedBytes);
  return engine;
}

const std::optional<OperatorInfo>& described(const std::string& name) {
  static const std::optional<OperatorInfo> none;
  const auto found = descriptions().find(name);
  EXPECT_NE(found, descriptions().end()) << "torch has no operator " << name;
  return found != descriptions().end() ? found->second : none;
}

std::vector<Begun> begun_in(const std::string& log) {
  std::vector<Begun> all;
  std::istringstream lines(log);
  bool opened = false;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (word == "open") opened = true;
    if (word != "begin") continue;
    Begun one;
    one.outermost = opened;
    opened = false;
    words >> one.name >> word;  // and its hash
    while (words >> word) {
      std::istringstream parts(word);
      Announced access;
      char comma = 0;
      std::getline(parts, access.address, ',');
      parts >> access.bytes >> comma >> access.mode;
      one.accesses.push_back(access);
    }
    all.push_back(one);
  }
  return all;
}

void TorchTest::SetUp() {
  plain_settings();
  ASSERT_EQ(tierpage_torch_attach(engine_for_tests(), nullptr), TP_OK) << tierpage_torch_last_error();
}

void TorchTest::TearDown() {
  plain_settings();
  tierpage_torch_detach();
  EXPECT_TRUE(at_rest());
}

std::string TorchTest::log_of(const std::function<void()>& action) {
  fake_start_log();
  action();
  return fake_log();
}

int32_t TorchTest::code_of(const std::function<void()>& action, std::string* message) {
  try {
    action();
  } catch (PagerError& error) {
    if (message != nullptr) *message = error.what();
    return error.code();
  }
  ADD_FAILURE() << "no error was thrown";
  return TP_OK;
}

}  // namespace tierpage
