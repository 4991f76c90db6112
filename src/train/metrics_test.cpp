#include "train/metrics.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <fstream>
#include <vector>

#include "base/mapped_file.h"
#include "formats/json.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"
#include "train/loss_plot.h"

namespace drover {
namespace {

using testing::expect_error;
using testing::TempFolder;

StepReport step(int64_t number, double loss) {
  StepReport out;
  out.step = number;
  out.stage = 1;
  out.loss = loss;
  out.balance = 1.25;
  out.rate = 0.5;
  out.gradient_norm = 2;
  out.tokens = 100;
  out.seconds = 0.5;
  out.sources = {{"a", 2, 4, 1}, {"unused", 0, 0, 0}};
  out.experts = {{0.25, 0.75}, {0.5, 0.5}};
  return out;
}

HeldOutReport held_out(int64_t number) { return {.step = number, .sources = {{"a", 4, 2, 3}}}; }

std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<std::string> out;
  for (std::string line; std::getline(file, line);) out.push_back(line);
  return out;
}

class Metrics : public ::testing::Test {
 protected:
  void write() {
    MetricsFile file(path_, 0, 0);
    for (int64_t i = 1; i <= 4; ++i) {
      file.add(step(i, 3.0 / static_cast<double>(i)));
      if (i % 2 == 0) file.add(held_out(i));
    }
  }
  TempFolder folder_;
  std::filesystem::path path_ = folder_ / "metrics.jsonl";
};

TEST_F(Metrics, SaysWhatAStepCameTo) {
  write();
  const auto lines = lines_of(path_);
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(
      lines[0],
      R"({"step":1,"stage":1,"loss":3E0,"sources":{"a":{"loss":2E0,"accuracy":5E-1,"weight":2E0}},)"
      R"("rate":5E-1,"gradient_norm":2E0,"tokens":100,"tokens_per_second":2E2,"balance":1.25E0,)"
      R"("experts":[[2.5E-1,7.5E-1],[5E-1,5E-1]]})");
  EXPECT_EQ(lines[2],
            R"({"step":2,"held_out":{"a":{"loss":5E-1,"accuracy":7.5E-1,"weight":4E0}}})");
}

TEST_F(Metrics, AreCutBackToTheStepOfACheckpoint) {
  write();
  const auto before = lines_of(path_);
  { const MetricsFile file(path_, 3, 2); }
  EXPECT_EQ(lines_of(path_), (std::vector<std::string>(before.begin(), before.begin() + 4)));
  // The checkpoint of step 2 was taken before the examples of step 2 were asked.
  { const MetricsFile file(path_, 2, 0); }
  EXPECT_EQ(lines_of(path_), (std::vector<std::string>(before.begin(), before.begin() + 2)));
  { const MetricsFile file(path_, 0, 0); }
  EXPECT_TRUE(lines_of(path_).empty());
}

TEST_F(Metrics, LoseALineThatWasCutInWriting) {
  write();
  std::string text = read_file(path_, 1 << 20);
  text.resize(text.size() - 5);
  folder_.write("metrics.jsonl", text);
  { const MetricsFile file(path_, 4, 4); }
  EXPECT_EQ(lines_of(path_).size(), 5u);
}

TEST_F(Metrics, AreCutWhateverStandsBehindTheStep) {
  write();
  const std::string text = read_file(path_, 1 << 20);
  const size_t third = text.find("{\"step\":3");
  for (const std::string& bad :
       {std::string("{\"step\":"), std::string("[3]"), std::string("{}"), std::string(100, '\0')}) {
    SCOPED_TRACE(bad);
    folder_.write("metrics.jsonl", text.substr(0, third) + bad + "\n" + text.substr(third));
    { const MetricsFile file(path_, 2, 2); }
    EXPECT_EQ(read_file(path_, 1 << 20), text.substr(0, third));
    // What counts is not thrown away for it.
    folder_.write("metrics.jsonl", text.substr(0, third) + bad + "\n" + text.substr(third));
    try {
      const MetricsFile file(path_, 3, 2);
      ADD_FAILURE() << "expected an Error, got none";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadData);
    }
  }
}

TEST_F(Metrics, HaveOneWriter) {
  const MetricsFile file(path_, 0, 0);
  expect_error(ErrorKind::kUsage, "another training writes there",
               [&] { const MetricsFile second(path_, 0, 0); });
}

TEST(StepReport, CrowdingIsTheBusiestExpertBesideTheMean) {
  EXPECT_EQ(step(1, 1).crowding(), 1.5);
  EXPECT_EQ(StepReport().crowding(), 1);
}

// Every tag is closed in its turn, and texts are escaped.
void expect_well_formed(std::string_view svg) {
  std::vector<std::string> open;
  for (size_t at = svg.find('<'); at != std::string_view::npos; at = svg.find('<', at)) {
    const size_t end = svg.find('>', at);
    ASSERT_NE(end, std::string_view::npos);
    const std::string_view tag = svg.substr(at + 1, end - at - 1);
    EXPECT_EQ(tag.find('<'), std::string_view::npos) << tag;
    EXPECT_EQ(std::count(tag.begin(), tag.end(), '"') % 2, 0) << tag;
    if (tag.front() == '/') {
      ASSERT_FALSE(open.empty());
      EXPECT_EQ(tag.substr(1), open.back());
      open.pop_back();
    } else if (tag.back() != '/') {
      open.emplace_back(tag.substr(0, tag.find(' ')));
    }
    at = end;
  }
  EXPECT_TRUE(open.empty());
  for (size_t at = svg.find('&'); at != std::string_view::npos; at = svg.find('&', at + 1)) {
    EXPECT_NE(svg.substr(at, 6).find(';'), std::string_view::npos) << svg.substr(at, 6);
  }
  EXPECT_EQ(svg.find("nan"), std::string_view::npos);
  EXPECT_EQ(svg.find("inf"), std::string_view::npos);
}

TEST_F(Metrics, BecomeCurves) {
  write();
  const auto curves = loss_curves(read_file(path_, 1 << 20), "metrics");
  ASSERT_EQ(curves.size(), 2u);
  EXPECT_EQ(curves[0].name, "training");
  EXPECT_EQ(curves[0].points.size(), 4u);
  EXPECT_EQ(curves[0].points[1], (std::pair<double, double>(2, 1.5)));
  EXPECT_EQ(curves[1].name, "a");
  EXPECT_EQ(curves[1].points, (std::vector<std::pair<double, double>>{{2, 0.5}, {4, 0.5}}));
  const std::string svg = loss_svg(curves, "a & b <c>");
  expect_well_formed(svg);
  EXPECT_NE(svg.find("a &amp; b &lt;c&gt;"), std::string::npos);
  EXPECT_NE(svg.find("a, held out 0.500"), std::string::npos);
}

TEST(LossPlot, IsWellFormedWhateverTheLosses) {
  std::vector<LossCurve> curves;
  expect_well_formed(loss_svg(curves, ""));
  curves.push_back({"training", {}});
  expect_well_formed(loss_svg(curves, "nothing yet"));
  curves[0].points = {{1, 0}, {2, std::nan("")}, {3, INFINITY}, {4, 1e-30}, {5, 1e30}};
  expect_well_formed(loss_svg(curves, "strange"));
  curves[0].points = {{1, 2}};
  expect_well_formed(loss_svg(curves, "one"));
}

TEST(LossPlot, DrawsNoMorePointsThanThereIsRoomFor) {
  std::vector<LossCurve> curves = {{"training", {}}};
  for (int i = 1; i <= 100'000; ++i) curves[0].points.emplace_back(i, 5.0 / i);
  EXPECT_LT(loss_svg(curves, "long").size(), 40'000u);
}

}  // namespace
}  // namespace drover
