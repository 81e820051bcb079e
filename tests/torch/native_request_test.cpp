// A request of torch's own CUDA allocator: what is kept for it is given back however it ends.
#include "torch/native_request.h"

#include <stdexcept>

#include "torch_test.h"

namespace tierpage {
namespace {

constexpr uint64_t kMebi = 1ull << 20;
int asked = 0;
uint64_t reserved(const tp_engine_api&) {
  ++asked;
  return 0;
}

class NativeRequestTest : public TorchTest {
 protected:
  void SetUp() override {
    TorchTest::SetUp();
    asked = 0;
  }
  void TearDown() override {
    fake_set_room(0);
    TorchTest::TearDown();
  }
  const tp_engine_api& engine = *engine_for_tests();
};

TEST_F(NativeRequestTest, WhatIsKeptGoesWithTheRequest) {
  fake_set_room(1000 * kMebi);
  try {
    NativeRequest request(100 * kMebi, &reserved);
    EXPECT_TRUE(request.make_room(engine, 30 * kMebi));
    EXPECT_EQ(fake_room_kept(), 90 * kMebi);
    EXPECT_TRUE(request.make_room(engine, 0));
    EXPECT_EQ(fake_room_kept(), 210 * kMebi);
    throw std::runtime_error("out of memory");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(fake_room_kept(), 0u);
  EXPECT_EQ(asked, 1);
}

TEST_F(NativeRequestTest, WithoutRoomForASegmentItTakesWhatItNeeds) {
  fake_set_room(100 * kMebi);
  NativeRequest request(100 * kMebi, &reserved);
  EXPECT_TRUE(request.make_room(engine, 0));
  EXPECT_EQ(fake_room_kept(), 100 * kMebi);
  fake_set_room(50 * kMebi);
  EXPECT_FALSE(request.make_room(engine, 0));
  EXPECT_EQ(fake_room_kept(), 100 * kMebi);
}

TEST_F(NativeRequestTest, NobodyIsToldOfOneThatFindsABlock) {
  {
    const NativeRequest request(kMebi, &reserved);
  }
  EXPECT_EQ(asked, 0);
}

TEST_F(NativeRequestTest, RequestsNestInAThread) {
  EXPECT_EQ(NativeRequest::current(), nullptr);
  NativeRequest outer(kMebi, &reserved);
  {
    NativeRequest inner(kMebi, &reserved);
    EXPECT_EQ(NativeRequest::current(), &inner);
  }
  EXPECT_EQ(NativeRequest::current(), &outer);
}

}  // namespace
}  // namespace tierpage
