// "shapes": one to six coloured shapes, and questions for their names, colours, number, places and
// sizes. Held out are pairs of colour and shape: a held-out example has such a pair, and its one
// question is about it.
//
//   most    6      shapes of a picture, from one on: few come first in a training
//   turns   3      questions about a picture, at most
//   lists   0      share of pictures whose shapes are all named first: more to learn from each
//   large   0.1    share of pictures of several tiles
#include <algorithm>

#include "train/generators/generator.h"
#include "train/generators/generators.h"
#include "train/generators/scene.h"

namespace drover {
namespace {

class Shapes : public Generator {
 public:
  Shapes(const boost::json::object& settings, const SourceContext& context)
      : Generator(settings, context, {"most", "turns", "lists", "large"}),
        most_(size_setting("most", kMost, 1, kMost)),
        turns_(size_setting("turns", 3, 1, 64)),
        lists_(share_setting("lists", 0)),
        large_(share_setting("large", 0.1)) {
    for (size_t colour = 0; colour < named_colours().size(); ++colour) {
      for (size_t shape = 0; shape < shape_names().size(); ++shape) {
        (pair_held_out(colour, shape) ? unseen_ : seen_).push_back({colour, shape});
      }
    }
  }

  Example example(uint64_t seed, uint64_t index, int64_t length) const override {
    Random random = draws(context_, seed, index);
    return context_.held_out ? unseen(random, length) : seen(random, length);
  }

 private:
  static constexpr int64_t kMost = 6;

  Example seen(Random& random, int64_t length) const {
    SceneKinds kinds;
    // Often several of one shape or colour: counting would be too easy otherwise.
    const int64_t count = random.between(1, most_);
    const double alike = 0.6 * random.uniform();
    for (int64_t i = 0; i < count; ++i) {
      auto kind = pick(random, seen_);
      for (int tries = 0; i > 0 && random.chance(alike) && tries < 20; ++tries) {
        const auto& before = pick(random, kinds);
        if (random.chance(0.6) ? kind.second == before.second : kind.first == before.first) break;
        kind = pick(random, seen_);
      }
      kinds.push_back(kind);
    }
    const Scene scene = draw_scene(random, context_, large_, kinds);
    std::vector<Turn> turns;
    if (lists_ > 0 && random.chance(lists_)) {
      const auto list = ask_scene(random, scene, SceneQuestion::kList, 0, /*with_held_out=*/false);
      if (list) turns.push_back(*list);
    }
    const int64_t wanted = random.between(1, turns_);
    for (int tries = 0; tries < 100 && static_cast<int64_t>(turns.size()) < wanted; ++tries) {
      const auto what = static_cast<SceneQuestion>(random.below(kSceneQuestions));
      const auto about = static_cast<size_t>(random.below(count));
      const auto turn = ask_scene(random, scene, what, about, /*with_held_out=*/false);
      const bool known = turn && std::any_of(turns.begin(), turns.end(), [&](const Turn& t) {
                           return t.question == turn->question;
                         });
      if (turn && !known) turns.push_back(*turn);
    }
    if (turns.empty()) {
      turns.push_back(*ask_scene(random, scene, SceneQuestion::kCountAll, 0, false));
    }
    return dialogue(context_, {&scene.picture, 1}, turns, length, weight_);
  }

  Example unseen(Random& random, int64_t length) const {
    constexpr SceneQuestion kAbout[] = {
        SceneQuestion::kCountShape, SceneQuestion::kCountColour, SceneQuestion::kColour,
        SceneQuestion::kShape,      SceneQuestion::kIsThere,     SceneQuestion::kSide,
        SceneQuestion::kHalf,       SceneQuestion::kRelation,    SceneQuestion::kLargest};
    for (;;) {
      const SceneQuestion what = pick(random, kAbout);
      SceneKinds kinds = {pick(random, unseen_)};
      for (int64_t more = random.between(0, most_ - 1); more > 0; --more) {
        kinds.push_back(pick(random, seen_));
      }
      const Scene scene = draw_scene(random, context_, large_, kinds);
      const auto turn = ask_scene(random, scene, what, 0, /*with_held_out=*/true);
      if (turn) return dialogue(context_, {&scene.picture, 1}, {&*turn, 1}, length, weight_);
    }
  }

  int64_t most_, turns_;
  double lists_, large_;
  SceneKinds seen_, unseen_;
};

}  // namespace

std::unique_ptr<Source> make_shapes(const boost::json::object& settings,
                                    const SourceContext& context) {
  return std::make_unique<Shapes>(settings, context);
}

}  // namespace drover
