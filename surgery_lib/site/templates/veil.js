(function () {
  "use strict";
  function show(button, open) {
    var text = button.parentNode.querySelector(".veiled");
    button.setAttribute("aria-expanded", String(open));
    button.firstChild.textContent = open ? "Hide the text" : "Show the text";
    if (open) { text.removeAttribute("inert"); } else { text.setAttribute("inert", ""); }
  }
  document.addEventListener("click", function (event) {
    var button = event.target.closest(".veil > button");
    if (button) { show(button, button.getAttribute("aria-expanded") !== "true"); }
  });
})();
