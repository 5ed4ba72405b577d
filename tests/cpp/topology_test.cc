#include "transfer/topology.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/json_reader.h"
#include "support.h"

namespace hicache {
namespace {

using Kind = JsonValue::Kind;

/// tests/topology/samples.json, to which the Python side is held as well.
JsonValue samples() {
  const auto folder = std::filesystem::path(__FILE__).parent_path().parent_path();
  std::ostringstream text;
  text << std::ifstream(folder / "topology/samples.json").rdbuf();
  auto tree = parse_json(text.str());
  EXPECT_TRUE(tree.ok()) << tree.status().message();
  return std::move(tree.value());
}

TEST(Topology, ReadsWhatPythonReadsAndLooksUpTheSame) {
  const JsonValue all = samples();
  const auto& accepted = all.find("accepted")->elements;
  ASSERT_GE(accepted.size(), 8U);
  for (const JsonValue& sample : accepted) {
    SCOPED_TRACE(sample.find("goal")->string);
    const auto topology = Topology::parse(sample.find("text")->string);
    ASSERT_TRUE(topology.ok()) << topology.status().message();
    for (const JsonValue& row : sample.find("looked_up")->elements) {
      const std::string& location = row.elements[0].string;
      const std::string& device = row.elements[1].string;
      SCOPED_TRACE(location + " " + device);
      const auto cost = topology.value().cost(location, device);
      EXPECT_EQ(topology.value().is_preferred(location, device), row.elements[3].boolean);
      ASSERT_EQ(cost.has_value(), !row.elements[2].is(Kind::kNull));
      if (!cost.has_value()) continue;
      EXPECT_EQ(cost->fixed_ns, row.elements[2].elements[0].number);
      EXPECT_EQ(cost->ns_per_byte, row.elements[2].elements[1].number);
    }
  }
}

TEST(Topology, RefusesWhatPythonRefusesAndSaysWhy) {
  const JsonValue all = samples();
  const auto& refused = all.find("refused")->elements;
  ASSERT_GE(refused.size(), 40U);
  for (const JsonValue& sample : refused) {
    SCOPED_TRACE(sample.find("goal")->string);
    const auto topology = Topology::parse(sample.find("text")->string);
    ASSERT_FALSE(topology.ok());
    EXPECT_EQ(topology.status().code(), Code::kInvalidArgument);
    EXPECT_EQ(topology.status().message().find("the topology"), 0U) << topology.status().message();
  }
}

TEST(Topology, WithoutOneNothingIsKnown) {
  const Topology topology;
  EXPECT_TRUE(topology.empty());
  EXPECT_FALSE(topology.cost("cpu:0", "mlx5_0").has_value());
  EXPECT_FALSE(topology.is_preferred("cpu:0", "mlx5_0"));
}

TEST(JsonReader, ReadsEveryKindOfValue) {
  const auto read =
      parse_json(" {\"a\": [1, -2.5e2, 0, true, false, null, \"x\\n\"], \"b\": {}}\n");
  ASSERT_TRUE(read.ok()) << read.status().message();
  const auto& elements = read.value().find("a")->elements;
  ASSERT_EQ(elements.size(), 7U);
  EXPECT_EQ(elements[0].number, 1);
  EXPECT_EQ(elements[1].number, -250);
  EXPECT_EQ(elements[2].number, 0);
  EXPECT_TRUE(elements[3].is(Kind::kBool) && elements[3].boolean);
  EXPECT_TRUE(elements[4].is(Kind::kBool) && !elements[4].boolean);
  EXPECT_TRUE(elements[5].is(Kind::kNull));
  EXPECT_EQ(elements[6].string, "x\n");
  EXPECT_TRUE(read.value().find("b")->is(Kind::kObject));
  EXPECT_EQ(read.value().find("c"), nullptr);
}

TEST(JsonReader, KeepsUtf8AndRefusesWhatIsNone) {
  const auto text = [](std::string_view inside) { return "\"" + std::string(inside) + "\""; };
  for (const char* good : {"\xC2\x80", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEF\xBF\xBF",
                           "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    const auto read = parse_json(text(good));
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(read.value().string, good);
  }
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xC2", "\xE0\x9F\xBF", "\xED\xA0\x80",
                          "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF"}) {
    EXPECT_FALSE(parse_json(text(bad)).ok());
  }
  for (const char* half :
       {"\\ud800", "\\udc00", "\\ud800x", "\\ud800\\u0041", "\\u12", "\\u12g4"}) {
    EXPECT_FALSE(parse_json(text(half)).ok()) << half;
  }
}

TEST(JsonReader, IsBoundedInDepthCountAndSize) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_TRUE(parse_json(nested(kJsonDepthMax + 1)).ok());
  EXPECT_FALSE(parse_json(nested(kJsonDepthMax + 2)).ok());
  EXPECT_FALSE(parse_json(std::string(kJsonSizeMax / 2, '[')).ok());
  std::string many = "[0";
  for (size_t count = 2; count < kJsonValuesMax; ++count) many += ",0";
  EXPECT_TRUE(parse_json(many + "]").ok());
  EXPECT_FALSE(parse_json(many + ",0]").ok());
  EXPECT_FALSE(parse_json(std::string(kJsonSizeMax, ' ') + "1").ok());
}

TEST(JsonReader, SurvivesWhatIsCutOffOrChangedAnywhere) {
  const std::string whole =
      "{\"version\": 1, \"locations\": {\"cpu:0\": {\"preferred\": [\"r\\u00e4il\"], \"costs\": "
      "{\"r\": {\"fixed_ns\": 1.5e3, \"ns_per_byte\": 0.08}}}}}";
  ASSERT_TRUE(Topology::parse(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(Topology::parse(whole.substr(0, size)).ok()) << size;
  }
  HICACHE_TRACE_SEED();
  testing::Random random;
  for (int round = 0; round < 20'000; ++round) {
    std::string text = whole;
    for (uint64_t left = 1 + random.below(3); left > 0; --left) {
      text[random.below(text.size())] = static_cast<char>(random.below(256));
    }
    const auto read = Topology::parse(text);
    if (!read.ok()) EXPECT_EQ(read.status().code(), Code::kInvalidArgument);
  }
}

}  // namespace
}  // namespace hicache
