//! Base images of the machine's disks, for nodes that want to become backups and have none: each
//! request is answered by itself, and the core knows nothing of it.

use std::sync::Arc;
use std::time::Duration;

use link::transport::{Receiver, Sender};
use log_format::{ImageReply, ImageRequest, Message, Refuse, RefuseReason};
use tokio::time::timeout;

/// How long whoever asked may say nothing before it is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// Answers requests for parts of images. Called on threads that may block.
pub trait ImageServer: Send + Sync {
    /// The answer.
    ///
    /// # Errors
    /// Why there is none, and the way out, in one line.
    fn answer(&self, request: &ImageRequest) -> Result<ImageReply, String>;
}

/// Answers what comes on a connection, from `request` on, until it ends.
pub(super) async fn serve(
    images: Arc<dyn ImageServer>,
    sender: Sender,
    mut receiver: Receiver,
    mut request: ImageRequest,
) {
    loop {
        let images = Arc::clone(&images);
        let answer = tokio::task::spawn_blocking(move || images.answer(&request)).await;
        let message = match answer {
            Ok(Ok(reply)) => Message::ImageReply(reply),
            Ok(Err(text)) => Message::Refuse(Refuse { term: 0, reason: RefuseReason::WrongIdentity, text }),
            // A panic there was told already.
            Err(_) => return,
        };
        if sender.send(&message).await.is_err() || matches!(message, Message::Refuse(_)) {
            return;
        }
        match timeout(SILENCE, receiver.receive()).await {
            Ok(Ok(Some(Message::ImageRequest(next)))) => request = next,
            _ => return,
        }
    }
}
