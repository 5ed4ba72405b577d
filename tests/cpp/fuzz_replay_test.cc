// Every input that a fuzzer has ever kept, and mutations of them, through the fuzzers' targets.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "../fuzz/targets.h"
#include "support.h"

namespace hicache {
namespace {

namespace fs = std::filesystem;
using testing::Random;

class FuzzReplay : public ::testing::TestWithParam<fuzz::Target> {};

TEST_P(FuzzReplay, CorpusAndMutations) {
  HICACHE_TRACE_SEED();
  Random random(400);
  const fs::path corpus =
      fs::path(__FILE__).parent_path().parent_path() / "fuzz" / "corpus" / GetParam().name;
  size_t count = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(corpus)) {
    std::ifstream file(entry.path(), std::ios::binary);
    std::vector<uint8_t> input{std::istreambuf_iterator<char>(file), {}};
    GetParam().run(input);
    ++count;
    for (int round = 0; round < 30 && !input.empty(); ++round) {
      std::vector<uint8_t> mutated = input;
      for (uint64_t flips = random.between(1, 6); flips > 0; --flips) {
        mutated[random.below(mutated.size())] = static_cast<uint8_t>(random.bits());
      }
      if (random.one_in(3)) mutated.resize(random.below(mutated.size() + 1));
      GetParam().run(mutated);
    }
  }
  EXPECT_GT(count, 0U) << "no corpus in " << corpus;
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzReplay, ::testing::ValuesIn(fuzz::kTargets),
                         [](const auto& target) { return std::string(target.param.name); });

}  // namespace
}  // namespace hicache
