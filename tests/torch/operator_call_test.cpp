// One operator in its frame: what is announced both ways, how errors leave, and what is left afterwards.
#include <torch/library.h>

#include <thread>

#include "torch/interceptor.h"
#include "torch/registration.h"
#include "torch_test.h"

namespace tierpage {
namespace {

// Catches what its inner operator has no memory for, as torch's search for an algorithm does, and goes on without it.
at::Tensor sum_or_zero(const at::Tensor& x) {
  try {
    return (x + 1).sum();
  } catch (const c10::OutOfMemoryError&) {
    return at::zeros({});
  }
}

at::Tensor nested(const at::Tensor& x) { return x.mul(2).add_(1); }

// Raw C++ that a library registers without a device, and as another operator's kernel for the CPU. Neither announces
// anything by itself.
double first_of(const at::Tensor& x) { return x.const_data_ptr<float>()[0]; }
bool square_announces_all = false;
at::Tensor raw_square(const at::Tensor& x) {
  square_announces_all = thread_state().announces_all;
  at::Tensor result = at::empty_like(x);
  const float* from = x.const_data_ptr<float>();
  float* to = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) to[i] = from[i] * from[i];
  return result;
}

std::function<void()> meanwhile_action = [] {};
at::Tensor meanwhile(const at::Tensor& x) {
  meanwhile_action();
  return x + 1;
}

}  // namespace
}  // namespace tierpage

TORCH_LIBRARY(tierpage_calls, library) {
  library.def("sum_or_zero(Tensor x) -> Tensor");
  library.def("nested(Tensor x) -> Tensor");
  library.def("meanwhile(Tensor x) -> Tensor");
  library.def("first_of(Tensor x) -> float", &tierpage::first_of);
}
TORCH_LIBRARY_IMPL(tierpage_calls, CPU, library) {
  library.impl("sum_or_zero", &tierpage::sum_or_zero);
  library.impl("nested", &tierpage::nested);
  library.impl("meanwhile", &tierpage::meanwhile);
}

namespace tierpage {
namespace {

class OperatorCallTest : public TorchTest {
 protected:
  static at::Tensor call(const char* name, const at::Tensor& x) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<at::Tensor(const at::Tensor&)>().call(x);
  }

  // The same call through the typed and through the boxed kernel.
  static void expect_same(const std::function<void()>& action, const char* what) {
    tierpage_torch_set_option("typed", 0);
    const std::string boxed = log_of(action);
    tierpage_torch_set_option("typed", 1);
    EXPECT_EQ(log_of(action), boxed) << what;
    EXPECT_NE(boxed.find("begin "), std::string::npos) << what;
  }
};

TEST_F(OperatorCallTest, TypedAndBoxedKernelsAnnounceTheSame) {
  const at::Tensor x = matrix(), y = matrix(2), row = x[3];
  at::Tensor out = matrix();
  const at::Tensor numbers = at::arange(kSide * kSide).view({kSide, kSide}).remainder(kSide);
  expect_same([&] { x + y; }, "add");
  expect_same([&] { x + at::ones({}); }, "add, one of them small");
  expect_same([&] { x + row; }, "add, a view");
  expect_same([&] { out.mul_(x); }, "mul_");
  expect_same([&] { at::addmm_out(out, x, x, y); }, "addmm.out");
  expect_same([&] { at::cat({x, y, x}); }, "cat");
  expect_same([&] { at::index(x, {{}, numbers[0]}); }, "index with an optional tensor");
  expect_same([&] { at::native_layer_norm(x, {kSide}, row, {}, 1e-5); }, "native_layer_norm without a bias");
  expect_same([&] { at::linear(x, y); }, "linear, of which mm alone announces");
  expect_same([&] { at::topk(x, 5); }, "topk, with two results");
}

TEST_F(OperatorCallTest, AnnouncedIsWhatTheSchemaSays) {
  const at::Tensor x = matrix(), y = matrix(2);
  const auto all = begun([&] { x.add_(y[1]); });
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].name, "aten::add_");
  ASSERT_EQ(all[0].accesses.size(), 2u);
  EXPECT_EQ(all[0].accesses[0].bytes, 4096u);
  EXPECT_EQ(all[0].accesses[0].mode, TP_READ | TP_WRITE);
  EXPECT_EQ(all[0].accesses[1].bytes, kSide * sizeof(float));
  EXPECT_EQ(all[0].accesses[1].mode, uint32_t{TP_READ});
  EXPECT_TRUE(all_equal(x, 3));
}

TEST_F(OperatorCallTest, WithoutPagedTensorsTheEngineHearsNothing) {
  const at::Tensor small = at::ones({4});
  const uint64_t seen = tierpage_torch_counter(kOperatorsSeen), paged = tierpage_torch_counter(kOperatorsPaged);
  EXPECT_EQ(log_of([&] { small + small; }), "");
  EXPECT_GT(tierpage_torch_counter(kOperatorsSeen), seen);
  EXPECT_EQ(tierpage_torch_counter(kOperatorsPaged), paged);
}

TEST_F(OperatorCallTest, NestedOperatorsAddToTheScopeOfTheOutermost) {
  const at::Tensor x = matrix();
  at::Tensor result;
  const std::string log = log_of([&] { result = call("tierpage_calls::nested", x); });
  EXPECT_EQ(log.find("open"), log.rfind("open")) << log;
  EXPECT_EQ(log.find("close"), log.rfind("close")) << log;
  const auto all = begun_in(log);
  ASSERT_GT(all.size(), 2u) << log;
  EXPECT_EQ(all.front().name, "tierpage_calls::nested");
  EXPECT_EQ(all.back().name, "aten::add_");
  EXPECT_EQ(all.back().accesses[0].address, "new0+0") << "the product, which nobody outside sees";
  EXPECT_TRUE(all_equal(result, 3));
}

// What a launch of the innermost operator may use decides whether its arguments are looked at.
TEST_F(OperatorCallTest, OnlyTorchsOwnOperatorsAnnounceAllThatTheyUse) {
  EXPECT_TRUE(described("aten::mul.Tensor")->torchs_own);
  EXPECT_FALSE(described("tierpage_calls::meanwhile")->torchs_own);
  torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
  library.impl("square", &raw_square);
  register_pending();
  const at::Tensor x = matrix(3);
  bool before = true, after = true;
  meanwhile_action = [&] {
    before = thread_state().announces_all;
    (void)at::square(x);
    after = thread_state().announces_all;
  };
  square_announces_all = false;
  call("tierpage_calls::meanwhile", x);
  meanwhile_action = [] {};
  EXPECT_FALSE(before);
  EXPECT_TRUE(square_announces_all);
  EXPECT_FALSE(after);
  EXPECT_FALSE(thread_state().announces_all);
}

TEST_F(OperatorCallTest, AWaitEndsWithThePages) {
  const at::Tensor x = matrix();
  fake_set_wait_slices(4);
  x.add_(1);
  fake_set_wait_slices(0);
  EXPECT_TRUE(all_equal(x, 2));
}

TEST_F(OperatorCallTest, AnErrorOfTheEngineReachesTheCallerAndTheFrameIsClosed) {
  const at::Tensor x = matrix();
  for (const int32_t typed : {1, 0}) {
    tierpage_torch_set_option("typed", typed);
    fake_set_refuses(1);
    std::string message;
    const std::string log = log_of([&] { EXPECT_EQ(code_of([&] { x.add_(1); }, &message), TP_UNAVAILABLE); });
    fake_set_refuses(0);
    EXPECT_EQ(message, "refused: aten::add_");
    EXPECT_EQ(log.substr(log.size() - 6), "close\n") << log;
    EXPECT_TRUE(at_rest());
  }
  EXPECT_TRUE(all_equal(x, 1)) << "no kernel ran";
}

TEST_F(OperatorCallTest, AnErrorOfTheKernelClosesTheFrameToo) {
  const at::Tensor x = matrix(), y = at::ones({kSide + 1, kSide + 1});
  for (const int32_t typed : {1, 0}) {
    tierpage_torch_set_option("typed", typed);
    const std::string log = log_of([&] { EXPECT_THROW(x + y, c10::Error); });
    EXPECT_NE(log.find("close"), std::string::npos);
    EXPECT_TRUE(at_rest());
  }
}

TEST_F(OperatorCallTest, OutOfMemoryIsTorchsOwnErrorInsideAnOperatorAndOursOutsideOfIt) {
  const at::Tensor x = matrix();
  fake_set_budget(6000);
  at::Tensor result;
  EXPECT_NO_THROW(result = call("tierpage_calls::sum_or_zero", x));
  EXPECT_EQ(result.item<float>(), 0);
  for (const int32_t typed : {1, 0}) {
    tierpage_torch_set_option("typed", typed);
    EXPECT_EQ(code_of([&] { x + 1; }), TP_OUT_OF_MEMORY);
    EXPECT_EQ(code_of([&] { call("tierpage_calls::nested", x); }), TP_OUT_OF_MEMORY);
    EXPECT_TRUE(at_rest());
  }
}

TEST_F(OperatorCallTest, WhatTheCloseFindsIsThrownAfterTheKernel) {
  static tp_engine_api paranoid;
  paranoid = *engine_for_tests();
  paranoid.scope_close = [](tp_scope* scope, uint64_t stream) {
    engine_for_tests()->scope_close(scope, stream);
    return static_cast<int32_t>(TP_CORRUPT_PAGE);
  };
  const at::Tensor x = matrix();
  ASSERT_EQ(tierpage_torch_attach(&paranoid, nullptr), TP_OK);
  for (const int32_t typed : {1, 0}) {
    tierpage_torch_set_option("typed", typed);
    EXPECT_EQ(code_of([&] { x.add_(1); }), TP_CORRUPT_PAGE);
    EXPECT_TRUE(at_rest());
  }
  ASSERT_EQ(tierpage_torch_attach(engine_for_tests(), nullptr), TP_OK);
  EXPECT_TRUE(all_equal(x, 3));
}

TEST_F(OperatorCallTest, TheEngineHearsOfLaunchesWhileItWantsTo) {
  static tp_engine_api incurious;
  static const int32_t no = 0;
  incurious = *engine_for_tests();
  incurious.wants_times = &no;
  const at::Tensor x = matrix();
  const std::string log = log_of([&] { x.add_(1); });
  EXPECT_LT(log.find("begin"), log.find("launching"));
  EXPECT_LT(log.find("launching"), log.find("close"));
  ASSERT_EQ(tierpage_torch_attach(&incurious, nullptr), TP_OK);
  EXPECT_EQ(log_of([&] { x.add_(1); }).find("launching"), std::string::npos);
}

TEST_F(OperatorCallTest, OperatorsInTheMidstOfAnotherHaveAScopeOfTheirOwn) {
  const at::Tensor x = matrix(), y = matrix(2);
  at::Tensor result;
  const uint64_t paged = tierpage_torch_counter(kOperatorsPaged);
  meanwhile_action = [&] {
    const OwnScope handler;  // as a signal handler finds it
    y.mul_(2);
    EXPECT_TRUE(at_rest());
  };
  const std::string log = log_of([&] { result = call("tierpage_calls::meanwhile", x); });
  meanwhile_action = [] {};
  EXPECT_EQ(log.find("open\nbegin tierpage_calls::meanwhile"), 0u) << log;
  const size_t inner = log.find("open\n", 1);
  EXPECT_LT(inner, log.find("begin aten::mul_")) << log;
  EXPECT_LT(log.find("close\n", inner), log.find("begin aten::add")) << log;
  EXPECT_TRUE(all_equal(result, 2));
  EXPECT_TRUE(all_equal(y, 4));
  EXPECT_GE(tierpage_torch_counter(kOperatorsPaged), paged + 3) << "counted beyond its end";
}

TEST_F(OperatorCallTest, InAForkedChildPagedTensorsAreRefused) {
  static tp_engine_api child;
  child = *engine_for_tests();
  child.forked = [] { return int32_t{1}; };
  const at::Tensor x = matrix();
  ASSERT_EQ(tierpage_torch_attach(&child, nullptr), TP_OK);
  std::string message;
  EXPECT_EQ(code_of([&] { x.add_(1); }, &message), TP_UNAVAILABLE);
  EXPECT_NE(message.find("forked child"), std::string::npos) << message;
  EXPECT_TRUE(at_rest());
}

TEST_F(OperatorCallTest, AnOperatorThatBeganGoesOnWithItsEngineAndTheNextTakesTheAttachedOne) {
  static tp_engine_api other;
  static std::atomic<int> begins, allocations, scopes;
  other = *engine_for_tests();
  other.begin = [](tp_scope* scope, const tp_operator* op, const tp_access* accesses, size_t count) {
    ++begins;
    return engine_for_tests()->begin(scope, op, accesses, count);
  };
  other.allocate = [](tp_scope* scope, uint64_t bytes, uint64_t stream, uint64_t place, uint64_t* address) {
    ++allocations;
    return engine_for_tests()->allocate(scope, bytes, stream, place, address);
  };
  other.scope_create = [] {
    ++scopes;
    return engine_for_tests()->scope_create();
  };
  const at::Tensor x = matrix(), beside = matrix();
  for (const int32_t typed : {1, 0}) {
    begins = allocations = scopes = 0;
    tierpage_torch_set_option("typed", typed);
    at::Tensor result;
    meanwhile_action = [&] {
      ASSERT_EQ(tierpage_torch_attach(&other, nullptr), TP_OK);
      ASSERT_EQ(tierpage_torch_touch(address_of(beside)), TP_OK);
    };
    const std::string log = log_of([&] { result = call("tierpage_calls::meanwhile", x); });
    meanwhile_action = [] {};
    EXPECT_EQ(begins + allocations + scopes, 0) << log;
    EXPECT_NE(log.find("tierpage::raw_access"), std::string::npos) << log;
    EXPECT_TRUE(at_rest());
    EXPECT_TRUE(all_equal(result, 2));
    EXPECT_GT(begins, 0);
    EXPECT_EQ(scopes, 1);
    ASSERT_EQ(tierpage_torch_attach(engine_for_tests(), nullptr), TP_OK);
  }
}

TEST_F(OperatorCallTest, ALaterOperatorIsInterceptedFromTheNextCallOn) {
  for (const char* schema : {"late(Tensor(a!) x) -> ()", "late(Tensor x) -> ()"}) {
    torch::Library library(torch::Library::DEF, "tierpage_late", std::nullopt, __FILE__, __LINE__);
    library.def(schema);
    library.impl("late", torch::dispatch(c10::DispatchKey::CPU, [](const at::Tensor& x) { x.add_(1); }));
    const at::Tensor x = matrix();
    x.add_(1);  // takes it up
    EXPECT_FALSE(registrations_pending());
    const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow("tierpage_late::late", "");
    const auto op = handle.typed<void(const at::Tensor&)>();
    const auto all = begun([&] { op.call(x); });
    ASSERT_FALSE(all.empty()) << schema;
    EXPECT_EQ(all[0].name, "tierpage_late::late");
    EXPECT_EQ(all[0].accesses[0].mode, TP_READ | TP_WRITE);
    EXPECT_TRUE(all_equal(x, 3));
  }
}

TEST_F(OperatorCallTest, AnExtensionsCompositeKernelIsAnnouncedLikeAnyOther) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("tierpage_calls::first_of", "");
  const auto first = op.typed<double(const at::Tensor&)>();
  const at::Tensor x = matrix(3);
  const auto all = begun([&] { EXPECT_EQ(first.call(x), 3.0); });
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].name, "tierpage_calls::first_of");
  const c10::InferenceMode inference;
  const at::Tensor y = matrix(4);
  EXPECT_EQ(first.call(y), 4.0) << "without autograd";
  EXPECT_TRUE(at_rest());
}

TEST_F(OperatorCallTest, WhoGetsAKernelOfItsOwnLaterIsSeenFromThenOn) {
  const at::Tensor x = matrix(3);
  const auto square = [&] { return begun_outermost([&] { EXPECT_TRUE(all_equal(at::square(x), 9)); }); };
  EXPECT_EQ(square()[0].name, "aten::pow") << "it is made of others";
  {
    torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
    library.impl("square", &raw_square);
    register_pending();
    EXPECT_EQ(square()[0].name, "aten::square");
  }
  register_pending();
  EXPECT_EQ(square()[0].name, "aten::pow");
}

TEST_F(OperatorCallTest, ACompositeThatGetsAnAutogradKernelLeavesItItsPlace) {
  torch::Library library(torch::Library::DEF, "tierpage_grows", std::nullopt, __FILE__, __LINE__);
  library.def("squared(Tensor x) -> Tensor", &raw_square);
  register_pending();
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("tierpage_grows::squared", "");
  const auto squared = op.typed<at::Tensor(const at::Tensor&)>();
  const at::Tensor x = matrix(3);
  EXPECT_EQ(begun([&] { squared.call(x); })[0].name, "tierpage_grows::squared");
  library.impl("squared", torch::dispatch(c10::DispatchKey::CPU, &raw_square));
  static int graded;
  graded = 0;
  library.impl("squared", torch::dispatch(c10::DispatchKey::Autograd, [](const at::Tensor& y) {
                 ++graded;
                 return y.mul(y);
               }));
  EXPECT_TRUE(all_equal(squared.call(x), 9));
  EXPECT_EQ(graded, 1) << "nobody has looked since";
}

TEST_F(OperatorCallTest, AThreadHasAScopeOfItsOwnWhichEndsWithIt) {
  static std::atomic<int> alive;
  static tp_engine_api counting;
  alive = 0;
  counting = *engine_for_tests();
  counting.scope_create = [] {
    ++alive;
    return engine_for_tests()->scope_create();
  };
  counting.scope_destroy = [](tp_scope* scope) {
    --alive;
    engine_for_tests()->scope_destroy(scope);
  };
  const at::Tensor x = matrix(), small = at::ones({});
  const uint64_t paged = tierpage_torch_counter(kOperatorsPaged);
  ASSERT_EQ(tierpage_torch_attach(&counting, nullptr), TP_OK);
  std::thread([&] {
    x.add_(small);
    EXPECT_EQ(alive, 1);
    x.add_(small);
    EXPECT_EQ(alive, 1);
  }).join();
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(tierpage_torch_counter(kOperatorsPaged), paged + 2) << "counted beyond the thread's end";
}

}  // namespace
}  // namespace tierpage
