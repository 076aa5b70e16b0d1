(function () {
  "use strict";
  var modes = ["system", "light", "dark"], root = document.documentElement, mode = "system";
  try { mode = localStorage.getItem("theme") || mode; } catch (error) { mode = "system"; }
  function show() {
    if (mode === "system") { root.removeAttribute("data-theme"); } else { root.setAttribute("data-theme", mode); }
    var button = document.getElementById("theme");
    if (button) { button.textContent = "Theme: " + mode; }
  }
  show();
  document.addEventListener("DOMContentLoaded", function () {
    show();
    document.getElementById("theme").addEventListener("click", function () {
      mode = modes[(modes.indexOf(mode) + 1) % modes.length];
      try { localStorage.setItem("theme", mode); } catch (error) { /* a browser that keeps nothing */ }
      show();
    });
  });
})();
