// Shows a pair of images and asks which is the fake; the page and the tasks of a platform share it.
const $ = (id) => document.getElementById(id);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const buttons = [...document.querySelectorAll("[data-side]")];

async function load(image, address) {
  image.src = address;
  await image.decode();
}

// Shows both for some milliseconds, counted in frames that were drawn; returns for how many.
function expose(milliseconds) {
  return new Promise((done) => {
    requestAnimationFrame((start) => {
      $("pair").classList.add("shown");
      const tick = (now) => {
        if (now - start < milliseconds - 4) return requestAnimationFrame(tick);
        $("pair").classList.remove("shown");
        done(Math.round(now - start));
      };
      requestAnimationFrame(tick);
    });
  });
}

// Waits for a key or a button; returns the side.
function answer() {
  buttons.forEach((button) => { button.disabled = false; });
  return new Promise((done) => {
    const finish = (side) => {
      buttons.forEach((button) => { button.disabled = true; button.onclick = null; });
      document.onkeydown = null;
      done(side);
    };
    buttons.forEach((button) => { button.onclick = () => finish(button.dataset.side); });
    document.onkeydown = (event) => {
      if (event.key === "ArrowLeft") finish("left");
      if (event.key === "ArrowRight") finish("right");
    };
  });
}
