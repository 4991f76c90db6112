#include "train/generators/scene.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

namespace drover {
namespace {

constexpr std::string_view kShapes[] = {"circle", "square", "triangle", "star",
                                        "cross",  "heart",  "diamond",  "ring"};
constexpr double kHeldOut = 0.1;

std::vector<Point> arc(Point centre, double radius, double from, double to, int pieces) {
  std::vector<Point> out;
  for (int i = 0; i <= pieces; ++i) {
    const double angle = (from + (to - from) * i / pieces) * 3.14159265358979323846;
    // To 2^-10, so that a last bit of cos() that differs between machines is not seen.
    const auto short_of = [](double v) { return std::floor(v * 1024 + 0.5) / 1024; };
    out.push_back({centre.x + short_of(radius * std::cos(angle)),
                   centre.y + short_of(radius * std::sin(angle))});
  }
  return out;
}

std::vector<Point> polygon(int corners, double first) {
  auto out = arc({0, 0}, 1, first, first + 2, corners);
  out.pop_back();
  return out;
}

Path make_shape(std::string_view name) {
  if (name == "circle") return {polygon(48, 0)};
  if (name == "square") return {{{-0.8, -0.8}, {0.8, -0.8}, {0.8, 0.8}, {-0.8, 0.8}}};
  if (name == "triangle") return {polygon(3, -0.5)};
  if (name == "diamond") return {{{0, -1}, {0.72, 0}, {0, 1}, {-0.72, 0}}};
  if (name == "cross") {
    const double a = 0.32, b = 0.92;
    return {{{-a, -b},
             {a, -b},
             {a, -a},
             {b, -a},
             {b, a},
             {a, a},
             {a, b},
             {-a, b},
             {-a, a},
             {-b, a},
             {-b, -a},
             {-a, -a}}};
  }
  if (name == "star") {
    const auto tips = polygon(5, -0.5), dents = polygon(5, -0.3);
    Path out(1);
    for (size_t i = 0; i < 5; ++i) {
      out[0].push_back(tips[i]);
      out[0].push_back({0.42 * dents[i].x, 0.42 * dents[i].y});
    }
    return out;
  }
  if (name == "heart") {
    Path out(1);
    for (const double side : {-0.48, 0.48}) {  // two lobes that meet in the middle
      const auto lobe = arc({side, -0.36}, 0.48, side < 0 ? 0.85 : 1.0, side < 0 ? 2.0 : 2.15, 16);
      out[0].insert(out[0].end(), lobe.begin(), lobe.end());
    }
    out[0].push_back({0, 0.95});
    return out;
  }
  auto hole = polygon(48, 0);
  for (Point& p : hole) p = {0.55 * p.x, 0.55 * p.y};
  std::reverse(hole.begin(), hole.end());
  return {polygon(48, 0), hole};
}

std::string_view shape_of(const SceneObject& o) { return kShapes[o.shape]; }
std::string_view colour_of(const SceneObject& o) { return named_colours()[o.colour].name; }
std::string both(const SceneObject& o) { return fmt::format("{} {}", colour_of(o), shape_of(o)); }

std::string plural(std::string_view shape) {
  return shape == "cross" ? "crosses" : fmt::format("{}s", shape);
}

template <typename Match>
int64_t count(const Scene& scene, Match match) {
  return std::count_if(scene.objects.begin(), scene.objects.end(), match);
}

int64_t is_there(const Scene& scene, const SceneObject& o) {
  return count(scene,
               [&](const SceneObject& x) { return x.shape == o.shape && x.colour == o.colour; });
}

// The object with the largest value, if it is clearly ahead of the next.
template <typename Value>
std::optional<size_t> foremost(const Scene& scene, double ahead, Value value) {
  std::optional<size_t> best;
  for (size_t i = 0; i < scene.objects.size(); ++i) {
    if (!best || value(scene.objects[i]) > value(scene.objects[*best])) best = i;
  }
  for (size_t i = 0; best && i < scene.objects.size(); ++i) {
    if (i != *best && value(scene.objects[*best]) - value(scene.objects[i]) < ahead) return {};
  }
  return best;
}

// Colour and shape of each, if none is closer than `apart` pixels to the next.
std::optional<std::vector<std::string>> from_left_to_right(const Scene& scene, double apart) {
  std::vector<SceneObject> order = scene.objects;
  std::sort(order.begin(), order.end(),
            [](const SceneObject& a, const SceneObject& b) { return a.x < b.x; });
  std::vector<std::string> names;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && order[i].x - order[i - 1].x < apart) return {};
    names.push_back(both(order[i]));
  }
  return names;
}

}  // namespace

std::span<const std::string_view> shape_names() { return kShapes; }

const Path& shape_path(size_t shape) {
  static const std::vector<Path> paths = [] {
    std::vector<Path> out;
    for (const std::string_view name : kShapes) out.push_back(make_shape(name));
    return out;
  }();
  return paths[shape];
}

bool pair_held_out(size_t colour, size_t shape) {
  return held_out("shapes", fmt::format("{} {}", named_colours()[colour].name, kShapes[shape]),
                  kHeldOut);
}

Scene draw_scene(Random& random, const SourceContext& context, double large,
                 const SceneKinds& kinds) {
  // A background that all of them stand out from, or the best of some.
  Colour background;
  int64_t apart = -1;
  for (int tries = 0; tries < 40 && apart < 120; ++tries) {
    const Colour tried = tries < 10 ? background_colour(random) : any_colour(random);
    int64_t nearest = 3 * 255;
    for (const auto& [colour, shape] : kinds) {
      nearest = std::min(nearest, distance(tried, named_colours()[colour].colour));
    }
    if (nearest > apart) apart = nearest, background = tried;
  }
  Canvas canvas = blank_canvas(random, context, large, background);
  const auto w = static_cast<double>(canvas.width()), h = static_cast<double>(canvas.height());
  const double side = std::min(w, h);

  Scene out;
  for (double most = 0.25; out.objects.size() < kinds.size(); most *= 0.9) {
    out.objects.clear();
    for (int tries = 0; out.objects.size() < kinds.size() && tries < 200; ++tries) {
      const auto& [colour, shape] = kinds[out.objects.size()];
      const double r = side * (0.085 + (most - 0.085) * random.uniform());
      const SceneObject object{shape, colour, r + (w - 2 * r) * random.uniform(),
                               r + (h - 2 * r) * random.uniform(), r};
      const bool free =
          std::none_of(out.objects.begin(), out.objects.end(), [&](const SceneObject& o) {
            const double dx = o.x - object.x, dy = o.y - object.y, apart = 1.04 * (o.radius + r);
            return dx * dx + dy * dy < apart * apart;
          });
      if (free) out.objects.push_back(object);
    }
  }
  for (const SceneObject& o : out.objects) {
    const double turn = 0.1 * (2 * random.uniform() - 1);  // up to 11 degrees
    canvas.fill(transformed(shape_path(o.shape), Affine::placed(o.radius, turn, o.x, o.y)),
                varied(random, named_colours()[o.colour].colour));
  }
  canvas.noise(random, random.chance(0.6) ? 0 : random.between(2, 12));
  out.picture = canvas.take();
  return out;
}

std::optional<Turn> ask_scene(Random& random, const Scene& scene, SceneQuestion what, size_t about,
                              bool with_held_out) {
  const SceneObject& o = scene.objects[about];
  const auto w = static_cast<double>(scene.picture.width);
  const auto h = static_cast<double>(scene.picture.height);
  const auto same_shape = [&](const SceneObject& x) { return x.shape == o.shape; };
  const auto same_colour = [&](const SceneObject& x) { return x.colour == o.colour; };
  const int64_t all = static_cast<int64_t>(scene.objects.size());
  const auto asked_count = [&](std::string_view things, int64_t n) -> Turn {
    return {random.chance(0.7) ? fmt::format("How many {} are there?", things)
                               : fmt::format("Count the {}.", things),
            std::to_string(n)};
  };
  switch (what) {
    case SceneQuestion::kCountAll:
      return asked_count("shapes", all);
    case SceneQuestion::kCountShape: {
      // Now and then of a shape that is not there.
      size_t shape = o.shape;
      if (!with_held_out && random.chance(0.15)) {
        shape = static_cast<size_t>(random.below(std::size(kShapes)));
      }
      const int64_t n = count(scene, [&](const SceneObject& x) { return x.shape == shape; });
      return asked_count(plural(kShapes[shape]), n);
    }
    case SceneQuestion::kCountColour:
      return asked_count(fmt::format("{} shapes", colour_of(o)), count(scene, same_colour));
    case SceneQuestion::kColour:
      if (count(scene, same_shape) != 1) return {};
      return Turn{random.chance(0.7) ? fmt::format("What colour is the {}?", shape_of(o))
                                     : fmt::format("Which colour does the {} have?", shape_of(o)),
                  std::string(colour_of(o))};
    case SceneQuestion::kShape:
      if (count(scene, same_colour) != 1) return {};
      if (all == 1 && random.chance(0.5)) {
        return Turn{random.chance(0.5) ? "What shape is this?" : "Which shape do you see?",
                    std::string(shape_of(o))};
      }
      return Turn{random.chance(0.7) ? fmt::format("What shape is {}?", colour_of(o))
                                     : fmt::format("Which shape is the {} one?", colour_of(o)),
                  std::string(shape_of(o))};
    case SceneQuestion::kIsThere: {
      const bool yes = random.chance(0.5);
      if (yes) return Turn{fmt::format("Is there {}?", with_article(both(o))), "yes"};
      // What is not there, and often half of it is: another colour of this shape, or the other way
      // round.
      for (int tries = 0; tries < 100; ++tries) {
        SceneObject other = o;
        const int64_t changed = random.below(3);
        if (changed != 0)
          other.colour = static_cast<size_t>(random.below(std::size(named_colours())));
        if (changed != 1) other.shape = static_cast<size_t>(random.below(std::size(kShapes)));
        if (pair_held_out(other.colour, other.shape) != with_held_out) continue;
        if (is_there(scene, other) == 0) {
          return Turn{fmt::format("Is there {}?", with_article(both(other))), "no"};
        }
      }
      return {};
    }
    case SceneQuestion::kSide: {
      if (all < 2) return {};
      const int side = static_cast<int>(random.below(4));
      const double sign = side % 2 == 0 ? -1 : 1;
      const auto first = foremost(scene, (side < 2 ? w : h) * 0.12, [&](const SceneObject& x) {
        return sign * (side < 2 ? x.x : x.y);
      });
      if (!first || (with_held_out && *first != about)) return {};
      constexpr std::string_view kSides[] = {"on the left", "on the right", "at the top",
                                             "at the bottom"};
      return Turn{fmt::format("Which shape is {}?", kSides[side]), both(scene.objects[*first])};
    }
    case SceneQuestion::kHalf: {
      if (is_there(scene, o) != 1) return {};
      const bool across = random.chance(0.5);
      const double at = across ? o.x / w : o.y / h;
      if (std::fabs(at - 0.5) < 0.08) return {};
      const std::string_view half =
          across ? (at < 0.5 ? "left" : "right") : (at < 0.5 ? "top" : "bottom");
      return Turn{fmt::format("Is the {} in the {} half?", both(o),
                              across ? "left or the right" : "top or the bottom"),
                  std::string(half)};
    }
    case SceneQuestion::kRelation: {
      if (all < 2 || is_there(scene, o) != 1) return {};
      const SceneObject& other = pick(random, scene.objects);
      if (&other == &o || is_there(scene, other) != 1) return {};
      const bool across = random.chance(0.5);
      const double by = across ? (other.x - o.x) / w : (other.y - o.y) / h;
      if (std::fabs(by) < 0.1) return {};
      const bool first = random.chance(0.5);  // "left of", "above"
      const std::string_view word =
          across ? (first ? "left of" : "right of") : (first ? "above" : "below");
      return Turn{fmt::format("Is the {} {} the {}?", both(o), word, both(other)),
                  (by > 0) == first ? "yes" : "no"};
    }
    case SceneQuestion::kLargest: {
      if (all < 2) return {};
      const bool largest = random.chance(0.5);
      double most = 0;
      for (const SceneObject& x : scene.objects) most = std::max(most, x.radius);
      const auto first = foremost(
          scene, 0.2 * most, [&](const SceneObject& x) { return largest ? x.radius : -x.radius; });
      if (!first || (with_held_out && *first != about)) return {};
      return Turn{fmt::format("Which shape is the {}?", largest ? "largest" : "smallest"),
                  both(scene.objects[*first])};
    }
    case SceneQuestion::kDescribe: {
      if (all > 3) return {};
      auto names = from_left_to_right(scene, 0.08 * w);
      if (!names) return {};
      for (std::string& name : *names) name = with_article(name);
      return Turn{random.chance(0.5) ? "What is in the picture?" : "Describe the picture.",
                  listed(*names)};
    }
    case SceneQuestion::kList: {
      const auto names = from_left_to_right(scene, 0.02 * w);
      if (!names) return {};
      return Turn{"List the shapes from left to right.",
                  fmt::format("{}", fmt::join(*names, ", "))};
    }
  }
  return {};
}

}  // namespace drover
