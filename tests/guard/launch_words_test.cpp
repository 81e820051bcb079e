// Pointers are found wherever a launch can carry them, and nothing is read beyond an argument.
#include "guard/launch_words.h"

#include <gtest/gtest.h>

#include "guard/stand_in_cuda.h"

namespace tierpage::testing {
namespace {

class LaunchWordsTest : public ::testing::Test {
 protected:
  LaunchWordsTest() { cuda() = {}; }
  std::vector<uint64_t> found(const std::vector<Pointer>& pointers) {
    std::vector<uint64_t> addresses;
    for (const Pointer& pointer : pointers) addresses.push_back(pointer.address);
    return addresses;
  }
  std::vector<uint64_t> of_kernel(CUfunction function, void** parameters, void** extra = nullptr) {
    std::vector<Pointer> pointers;
    words.of_kernel(function, parameters, extra, kRange, pointers);
    return found(pointers);
  }
  LaunchWords words{stand_in_facts()};
};

TEST_F(LaunchWordsTest, PointersInStructsAndBesideNumbersAreFound) {
  const auto kernel = handle<CUfunction>(0x1000);
  cuda().functions[kernel] = {8, 4, 24, 1};
  uint64_t pointer = kOurs;
  uint32_t number = 7;
  uint64_t list[3] = {kOthers, kOurs + 64, 3};
  char flag = 1;
  void* parameters[] = {&pointer, &number, list, &flag};
  EXPECT_EQ(of_kernel(kernel, parameters), (std::vector<uint64_t>{kOurs, kOurs + 64}));
}

TEST_F(LaunchWordsTest, HandlesOfTheRuntimeAreAskedForTheOtherWay) {
  const auto kernel = handle<CUkernel>(0x2000);
  cuda().kernels[kernel] = {8};
  uint64_t pointer = kOurs;
  void* parameters[] = {&pointer};
  EXPECT_EQ(of_kernel(reinterpret_cast<CUfunction>(kernel), parameters), std::vector<uint64_t>{kOurs});
}

TEST_F(LaunchWordsTest, TheRangeEndsBeforeItsEnd) {
  uint64_t edges[] = {kRange.base - 1, kRange.base, kRange.base + kRange.bytes - 1, kRange.base + kRange.bytes};
  std::vector<Pointer> pointers;
  LaunchWords::of_words(edges, 4, -1, kRange, pointers);
  EXPECT_EQ(found(pointers), (std::vector<uint64_t>{edges[1], edges[2]}));
}

TEST_F(LaunchWordsTest, ABlockOfArgumentsIsReadToItsEndAndNoFurther) {
  uint64_t block[] = {kOthers, kOurs, kOurs + 8};
  size_t bytes = 2 * sizeof(uint64_t);
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, block, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes, CU_LAUNCH_PARAM_END};
  EXPECT_EQ(of_kernel(handle<CUfunction>(1), nullptr, extra), std::vector<uint64_t>{kOurs});
}

TEST_F(LaunchWordsTest, AKernelIsAskedAboutOnceUntilModulesGo) {
  const auto kernel = handle<CUfunction>(0x1000);
  cuda().functions[kernel] = {8};
  uint64_t pointer = kOurs;
  void* parameters[] = {&pointer};
  (void)of_kernel(kernel, parameters);
  const int asked = cuda().questions;
  (void)of_kernel(kernel, parameters);
  EXPECT_EQ(cuda().questions, asked);
  words.forget_kernels();
  cuda().functions[kernel] = {4};  // the handle is another kernel's now: its argument has four bytes
  EXPECT_EQ(of_kernel(kernel, parameters), std::vector<uint64_t>{});
}

TEST_F(LaunchWordsTest, AKernelOfWhichTheDriverTellsNothingIsAskedAboutOnce) {
  void* parameters[] = {nullptr};
  EXPECT_EQ(of_kernel(handle<CUfunction>(0x3000), parameters), std::vector<uint64_t>{});
  const int asked = cuda().questions;
  EXPECT_EQ(of_kernel(handle<CUfunction>(0x3000), parameters), std::vector<uint64_t>{});
  EXPECT_EQ(cuda().questions, asked);
}

TEST_F(LaunchWordsTest, WhoIsWrittenIsKnownForCopies) {
  uint64_t copy[] = {kOurs, kOurs + 4096, 8};
  std::vector<Pointer> pointers;
  LaunchWords::of_words(copy, 3, 0, kRange, pointers);
  ASSERT_EQ(pointers.size(), 2u);
  EXPECT_TRUE(pointers[0].written);
  EXPECT_FALSE(pointers[1].written);
}

TEST_F(LaunchWordsTest, AGraphIsReadWithItsChildren) {
  const auto kernel = handle<CUfunction>(0x1000);
  cuda().functions[kernel] = {8};
  static uint64_t pointer = kOurs;
  static void* parameters[] = {&pointer};
  Node launch;
  launch.kernel.func = kernel;
  launch.kernel.kernelParams = parameters;
  Node copy;
  copy.type = CU_GRAPH_NODE_TYPE_MEMCPY;
  copy.copy.srcDevice = kOurs + 4096;
  Node set;
  set.type = CU_GRAPH_NODE_TYPE_MEMSET;
  set.set.dst = kOurs + 8192;
  Node child;
  child.type = CU_GRAPH_NODE_TYPE_GRAPH;
  child.child = handle<CUgraph>(2);
  cuda().graphs[handle<CUgraph>(1)] = {launch, child};
  cuda().graphs[handle<CUgraph>(2)] = {copy, set};
  std::vector<Pointer> pointers;
  words.of_graph(handle<CUgraph>(1), kRange, pointers);
  EXPECT_EQ(found(pointers), (std::vector<uint64_t>{kOurs, kOurs + 4096, kOurs + 8192}));
}

TEST_F(LaunchWordsTest, GraphsThatCannotBeReadLeaveNoTraceInTheNextOnes) {
  Node set;
  set.type = CU_GRAPH_NODE_TYPE_MEMSET;
  set.set.dst = kOurs;
  Node child;
  child.type = CU_GRAPH_NODE_TYPE_GRAPH;
  child.child = handle<CUgraph>(3);  // unknown: reading it throws
  cuda().graphs[handle<CUgraph>(1)] = {child};
  cuda().graphs[handle<CUgraph>(2)] = {set};
  std::vector<Pointer> pointers;
  for (int i = 0; i < 40; ++i) EXPECT_ANY_THROW(words.of_graph(handle<CUgraph>(1), kRange, pointers));
  words.of_graph(handle<CUgraph>(2), kRange, pointers);
  EXPECT_EQ(found(pointers), std::vector<uint64_t>{kOurs});
}

TEST_F(LaunchWordsTest, TheBookKeepsEachGraphsPointersOnce) {
  GraphBook book;
  const auto graph = handle<CUgraphExec>(9);
  book.note(graph, {{kOurs, false}, {kOurs, true}, {kOurs + 8, false}}, true);
  std::vector<Pointer> pointers;
  book.append(graph, pointers);
  ASSERT_EQ(pointers.size(), 2u);
  EXPECT_TRUE(pointers[0].written);
  book.note(graph, {{kOurs + 16, true}}, false);
  pointers.clear();
  book.append(graph, pointers);
  EXPECT_EQ(pointers.size(), 3u);
  book.note(graph, {{kOurs + 24, true}}, true);
  pointers.clear();
  book.append(graph, pointers);
  EXPECT_EQ(found(pointers), std::vector<uint64_t>{kOurs + 24});
  EXPECT_EQ(found(book.take_all()), std::vector<uint64_t>{kOurs + 24});
  EXPECT_TRUE(book.take_all().empty());
}

}  // namespace
}  // namespace tierpage::testing
