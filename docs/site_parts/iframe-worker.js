// A browser starts no worker from disk: the search's own then runs in a hidden frame.
// Material's plugin fetches a script for this from a host; this one does the little that is needed.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(address) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = (...all) =>
        all.reduce((before, one) => before.then(() => this.load(one)), Promise.resolve());
      this.load(address).then(() => this.send());
    }

    load(address) {
      return new Promise((done, failed) => {
        const script = this.frame.contentDocument.createElement("script");
        script.src = address;
        script.onload = done;
        script.onerror = failed;
        this.frame.contentDocument.body.appendChild(script);
      });
    }

    postMessage(data) {
      this.waiting.push(data);
      if (this.ready) this.send();
    }

    send() {
      const inside = this.frame.contentWindow;
      this.ready = true;
      for (const data of this.waiting.splice(0))
        inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }

    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
