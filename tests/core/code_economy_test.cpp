// Whether rewritten content is coded. Method: a program of which each recurrence moves the same, as sums by hand.
#include "core/future/code_economy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace tierpage {
namespace {

constexpr uint64_t kPeriod = 100;
constexpr double kContent = 40e9;  // bytes a recurrence, each way
constexpr double kLinkNs = 0.02;   // a byte: 50 GB/s
constexpr double kRatio = 0.75;

// Kernels of `compute_seconds` beside which pages move; the longer of both is what a recurrence takes.
class Program {
 public:
  double compute_seconds = 0.1;
  double coder_ns = 0.005;  // a byte of content
  double content = kContent;

  void run(int recurrences) {
    for (int i = 0; i < recurrences; ++i) {
      const bool codes = economy_.codes_rewritten();
      const double bytes = codes ? content * kRatio : content;
      const double link_ns = bytes * kLinkNs;
      const double coder = codes ? content * coder_ns : 0;
      traffic_.now_ns += static_cast<uint64_t>(std::max({compute_seconds * 1e9, link_ns, coder}));
      for (CodeTraffic::Way* way : {&traffic_.up, &traffic_.down}) {
        way->busy_ns += static_cast<uint64_t>(link_ns);
        way->bytes += static_cast<uint64_t>(bytes);
        way->content_bytes += static_cast<uint64_t>(content);
      }
      for (CodeTraffic::Coder* one : {&traffic_.encode, &traffic_.decode}) {
        if (!codes) continue;
        one->busy_ns += static_cast<uint64_t>(coder);
        one->content_bytes += static_cast<uint64_t>(content);
        one->coded_bytes += static_cast<uint64_t>(bytes);
      }
      uses_ += kPeriod;
      tell();
      changes_ += codes != economy_.codes_rewritten();
    }
  }
  void tell() {
    economy_.measured(traffic_, uses_, kPeriod, compute_seconds * 1e9);
    economy_.check_invariants();
  }
  bool codes() const { return economy_.codes_rewritten(); }
  int take_changes() { return std::exchange(changes_, 0); }
  CodeEconomy& economy() { return economy_; }
  const CodeTraffic& traffic() const { return traffic_; }

 private:
  CodeEconomy economy_;
  CodeTraffic traffic_;
  uint64_t uses_ = 0;
  int changes_ = 0;
};

TEST(CodeEconomy, CodesUntilItKnows) {
  Program program;
  EXPECT_TRUE(program.codes());
  for (int i = 1; i < 1000; ++i) {
    CodeTraffic traffic;
    traffic.now_ns = static_cast<uint64_t>(i) * 1'000'000'000;
    program.economy().measured(traffic, static_cast<uint64_t>(i) * kPeriod, i % 2 == 0 ? kPeriod : 0, 0);
  }
  EXPECT_TRUE(program.codes()) << "no recurrence, or no times";
}

TEST(CodeEconomy, WhereTheLinkIsWaitedForItCodes) {
  Program program;
  program.run(300);
  EXPECT_TRUE(program.codes());
  EXPECT_EQ(program.take_changes(), 0);
}

TEST(CodeEconomy, WhereKernelsAreItDoesNot) {
  Program program;
  program.compute_seconds = 4;  // the link needs 0.8
  program.run(1 + static_cast<int>(CodeEconomy::kPatience));
  EXPECT_FALSE(program.codes());
  program.run(300);
  EXPECT_FALSE(program.codes());
  EXPECT_EQ(program.take_changes(), 1);
  program.compute_seconds = 0.1;
  program.run(2);
  EXPECT_TRUE(program.codes()) << "the program has changed";
}

TEST(CodeEconomy, NotWhereTheCoderIsSlowerThanTheLink) {
  Program program;
  program.coder_ns = 0.03;
  program.run(1 + static_cast<int>(CodeEconomy::kPatience));
  EXPECT_FALSE(program.codes());
  program.take_changes();
  program.run(2 * static_cast<int>(CodeEconomy::kRemembered));
  EXPECT_LE(program.take_changes(), 2) << "tried once more, after a while";
}

TEST(CodeEconomy, NotWhereLittleMoves) {
  Program program;
  program.content = kContent / 100;
  program.compute_seconds = 0.0002;
  program.run(2);
  ASSERT_TRUE(program.codes());
  // Nine tenths of the time nobody works: the program waits for something else.
  CodeTraffic traffic = program.traffic();
  for (uint64_t i = 1; i < 20; ++i) {
    traffic.now_ns += 100'000'000;
    traffic.up.busy_ns += 8'000'000;
    traffic.up.bytes += 300'000'000;
    traffic.up.content_bytes += 400'000'000;
    program.economy().measured(traffic, (2 + i) * kPeriod, kPeriod, 200'000);
  }
  EXPECT_FALSE(program.codes());
}

// Coded, the kernels are the longest; uncoded, the link is.
TEST(CodeEconomy, WhatCodesHaveMadeFastStaysCoded) {
  Program program;
  program.compute_seconds = 0.75;  // the link needs 0.8 or 0.6
  program.run(1000);
  EXPECT_TRUE(program.codes());
  EXPECT_EQ(program.take_changes(), 0) << "uncoded it would not keep up";
}

// The link alone would keep up, but in phases: its share of the time says too little. It goes back and forth, but more
// and more rarely.
TEST(CodeEconomy, ChangesItsMindMoreAndMoreRarely) {
  CodeEconomy economy;
  CodeTraffic traffic;
  int changes = 0, late_changes = 0;
  for (uint64_t i = 1; i <= 2000; ++i) {
    const bool codes = economy.codes_rewritten();
    traffic.now_ns += codes ? 1'000'000'000 : 1'100'000'000;  // of which kernels are one second
    for (CodeTraffic::Way* way : {&traffic.up, &traffic.down}) {
      way->busy_ns += codes ? 450'000'000 : 600'000'000;
      way->bytes += codes ? 22'500'000'000 : 30'000'000'000;
      way->content_bytes += 30'000'000'000;
    }
    economy.measured(traffic, i * kPeriod, kPeriod, 1e9);
    economy.check_invariants();
    if (codes == economy.codes_rewritten()) continue;
    ++changes;
    late_changes += i > 1000;
  }
  EXPECT_GT(changes, 2);
  EXPECT_LE(late_changes, 10);
  EXPECT_TRUE(economy.codes_rewritten() || late_changes > 0);
}

// A phase of a recurrence says little.
TEST(CodeEconomy, LooksAtWholeRecurrences) {
  Program program;
  program.run(1);
  CodeTraffic traffic = program.traffic();
  for (uint64_t i = 1; i < 50; ++i) {
    traffic.now_ns += 1'000'000'000;
    program.economy().measured(traffic, kPeriod + i, kPeriod, 1e9);
  }
  EXPECT_TRUE(program.codes());
}

}  // namespace
}  // namespace tierpage
