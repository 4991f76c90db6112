// Sources that make what they teach: pictures with questions about them, numbers hidden in long
// texts, talk in a small world. Each function makes one kind (sources.h) from its settings, refuses
// a setting that it does not know by name, and says in its .cpp file's head what it makes.
//
// Answers are computed from what was drawn, never read off it. Example i of a seed is the same on
// every machine, and what is held out is drawn from other numbers too.
#pragma once

#include <memory>

#include "train/sources.h"

namespace drover {

// Text alone.
std::unique_ptr<Source> make_repeats(const boost::json::object& settings,
                                     const SourceContext& context);
std::unique_ptr<Source> make_recall(const boost::json::object& settings,
                                    const SourceContext& context);
std::unique_ptr<Source> make_needles(const boost::json::object& settings,
                                     const SourceContext& context);
std::unique_ptr<Source> make_small_world(const boost::json::object& settings,
                                         const SourceContext& context);

// With pictures: kBadData for a model without eyes.
std::unique_ptr<Source> make_shapes(const boost::json::object& settings,
                                    const SourceContext& context);
std::unique_ptr<Source> make_printed_words(const boost::json::object& settings,
                                           const SourceContext& context);
std::unique_ptr<Source> make_bars(const boost::json::object& settings,
                                  const SourceContext& context);
std::unique_ptr<Source> make_fashion_mnist(const boost::json::object& settings,
                                           const SourceContext& context);
std::unique_ptr<Source> make_emoji(const boost::json::object& settings,
                                   const SourceContext& context);

}  // namespace drover
