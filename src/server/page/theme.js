// Before anything is painted: the colours that were chosen here last. Without a choice they are the
// system's, and CSS sees to it.
try {
  const chosen = localStorage.getItem("drover-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // No storage, no memory of the choice.
}
