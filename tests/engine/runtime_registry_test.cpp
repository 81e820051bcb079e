// Finding runtimes by address, which one is active, and the locks across a fork.
#include "engine/runtime_registry.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace tierpage::testing {
namespace {

class RuntimeRegistryTest : public ::testing::Test {
 protected:
  // Only addresses of runtimes matter here.
  static Runtime* runtime(int number) { return reinterpret_cast<Runtime*>(static_cast<uintptr_t>(number) * 64); }
  Status add(int number, uint64_t base, uint64_t bytes) {
    return registry_->add(runtime(number), base, bytes, &mutex_[number], [] { return Status::success(); });
  }

  // Asked by another thread.
  static bool is_free(Mutex& mutex) {
    bool locked = false;
    std::thread([&] {
      locked = mutex.try_lock();
      if (locked) mutex.unlock();
    }).join();
    return locked;
  }

  // As long-lived as the process's own: it keeps what it has replaced.
  static RuntimeRegistry* make() {
    static auto* const made = new std::vector<RuntimeRegistry*>;
    return made->emplace_back(new RuntimeRegistry);
  }

  RuntimeRegistry* const registry_ = make();
  Mutex mutex_[4] = {Mutex(LockRank::kCore), Mutex(LockRank::kCore), Mutex(LockRank::kCore), Mutex(LockRank::kCore)};
};

TEST_F(RuntimeRegistryTest, AnAddressBelongsToTheRuntimeWhoseRangeHasIt) {
  EXPECT_EQ(registry_->of_address(100), nullptr);
  ASSERT_TRUE(add(1, 100, 50).ok());
  ASSERT_TRUE(add(2, 200, 50).ok());
  EXPECT_EQ(registry_->of_address(99), nullptr);
  EXPECT_EQ(registry_->of_address(100), runtime(1));
  EXPECT_EQ(registry_->of_address(149), runtime(1));
  EXPECT_EQ(registry_->of_address(150), nullptr);
  EXPECT_EQ(registry_->of_address(200), runtime(2));
}

TEST_F(RuntimeRegistryTest, TheLastOneAddedIsActiveUntilItIsDeactivated) {
  EXPECT_EQ(registry_->active(), nullptr);
  EXPECT_EQ(registry_->newest(), nullptr);
  ASSERT_TRUE(add(1, 100, 50).ok());
  ASSERT_TRUE(add(2, 200, 50).ok());
  EXPECT_EQ(registry_->active(), runtime(2));
  registry_->deactivate(runtime(1));  // is not
  EXPECT_EQ(registry_->active(), runtime(2));
  registry_->deactivate(runtime(2));
  EXPECT_EQ(registry_->active(), nullptr);
  EXPECT_EQ(registry_->newest(), runtime(2));
  EXPECT_EQ(registry_->of_address(200), runtime(2));  // its tensors live on
}

TEST_F(RuntimeRegistryTest, OneThatDoesNotStartIsNotFound) {
  const Status status = registry_->add(runtime(1), 100, 50, &mutex_[1], [this] {
    EXPECT_EQ(registry_->of_address(100), nullptr);
    return Status::error(StatusCode::kUnavailable, "no thread");
  });
  EXPECT_EQ(status.message, "no thread");
  EXPECT_EQ(registry_->of_address(100), nullptr);
  EXPECT_EQ(registry_->active(), nullptr);
}

TEST_F(RuntimeRegistryTest, AForkHoldsEveryLockAndTheChildKnows) {
  ASSERT_TRUE(add(1, 100, 50).ok());
  ASSERT_TRUE(add(2, 200, 50).ok());
  registry_->before_fork();
  EXPECT_FALSE(is_free(mutex_[1]));
  EXPECT_FALSE(is_free(mutex_[2]));
  registry_->after_fork_in_parent();
  EXPECT_TRUE(is_free(mutex_[1]));
  EXPECT_FALSE(registry_->forked());
  registry_->before_fork();
  registry_->after_fork_in_child();
  EXPECT_TRUE(registry_->forked());
  EXPECT_TRUE(is_free(mutex_[2]));
  EXPECT_TRUE(add(3, 300, 50).ok());
}

TEST_F(RuntimeRegistryTest, AProcessHasABoundedNumber) {
  for (uint64_t i = 1; i <= RuntimeRegistry::kRangesMax; ++i) ASSERT_TRUE(add(1, 100 * i, 50).ok());
  EXPECT_EQ(add(2, 50, 50).code, StatusCode::kUnavailable);
  EXPECT_EQ(registry_->active(), runtime(1));
}

TEST_F(RuntimeRegistryTest, WhoGetsARangeThatWasAnothersTakesItsPlace) {
  for (int i = 0; i < 2 * RuntimeRegistry::kRangesMax; ++i) ASSERT_TRUE(add(1 + i % 2, 100, 50).ok());
  ASSERT_TRUE(add(1, 200, 50).ok());
  ASSERT_TRUE(add(3, 100, 50).ok());
  EXPECT_EQ(registry_->of_address(120), runtime(3));
  EXPECT_EQ(registry_->of_address(220), runtime(1));
  registry_->deactivate(runtime(3));
  EXPECT_EQ(registry_->newest(), runtime(3));
  registry_->before_fork();
  EXPECT_FALSE(is_free(mutex_[3]));
  EXPECT_TRUE(is_free(mutex_[2]));
  registry_->after_fork_in_parent();
}

}  // namespace
}  // namespace tierpage::testing
