// A few coloured shapes that do not overlap, and what can be asked of them.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "train/generators/generator.h"
#include "train/generators/palette.h"

namespace drover {

struct SceneObject {
  size_t shape = 0;                 // of shape_names()
  size_t colour = 0;                // of named_colours()
  double x = 0, y = 0, radius = 0;  // pixels
};

struct Scene {
  std::vector<SceneObject> objects;
  Image picture;
};

std::span<const std::string_view> shape_names();
// Outlines of a circle's size: radius 1 around (0, 0).
const Path& shape_path(size_t shape);

// What is held out: pairs of colour and shape. Not numbers of a shape: never to see two stars
// counted is to learn that two is no answer there.
bool pair_held_out(size_t colour, size_t shape);

// What to draw: at most 6.
using SceneKinds = std::vector<std::pair<size_t, size_t>>;  // colour, shape

Scene draw_scene(Random& random, const SourceContext& context, double large,
                 const SceneKinds& kinds);

enum class SceneQuestion {
  kCountAll,
  kCountShape,
  kCountColour,
  kColour,
  kShape,
  kIsThere,
  kSide,
  kHalf,
  kRelation,
  kLargest,
  kDescribe,
  kList  // all of them, from left to right; not among kSceneQuestions, which are drawn at random
};
inline constexpr int kSceneQuestions = 11;  // before kList

// A question of this kind about object `about` of the scene, or, where it fits, another one;
// nothing if the scene has no clear answer to such a question.
std::optional<Turn> ask_scene(Random& random, const Scene& scene, SceneQuestion what, size_t about,
                              bool with_held_out);

}  // namespace drover
