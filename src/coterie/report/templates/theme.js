// Before the first paint, so that a chosen theme does not flash.
(() => {
  try {
    const kept = localStorage.getItem("coterie-theme");
    if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  } catch { /* a page without storage follows the system */ }
})();
